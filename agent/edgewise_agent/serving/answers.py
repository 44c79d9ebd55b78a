"""What is asked on each route, answered from the table of models."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from importlib import metadata
from typing import Any, Final, TypeVar

from edgewise_protocol.manifest import TensorSpec

from edgewise_agent.engines.errors import EngineError, InputError
from edgewise_agent.serving import compression, metrics, routes
from edgewise_agent.serving.codec import InferRequest, decode_request, encode_response
from edgewise_agent.serving.errors import (
    BusyError,
    EncodingError,
    RequestError,
    ServingError,
    TooLargeError,
    UnknownModelError,
)
from edgewise_agent.serving.exchange import BINARY, JSON, Limits, Request, Response, error_response, json_response
from edgewise_agent.serving.routes import METHODS, Route
from edgewise_agent.serving.table import ActiveModel, Answer, ModelTable

EXTENSIONS: Final = ("binary_tensor_data", "classification")
HEADER_LENGTH: Final = "inference-header-content-length"
_STATUS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (UnknownModelError, 404),
    (BusyError, 503),
    (TooLargeError, 413),
    (EncodingError, 415),
    (RequestError, 400),
    (InputError, 400),
    (ServingError, 503),
    (EngineError, 500),
)
T = TypeVar("T")
MoreMetrics = Callable[[], Iterable[metrics.Metric]]


class Answers:
    """The handler of all connections.

    Args:
        table: models that may be asked.
        beside: runs what would hold the event loop up for long.
    """

    def __init__(self, table: ModelTable, limits: Limits, beside: Executor) -> None:
        self._table = table
        self._limits = limits
        self._beside = beside
        self._statuses: Counter[int] = Counter()
        self.more_metrics: list[MoreMetrics] = []

    async def __call__(self, request: Request) -> Response:
        """Answer a request; every foreseen error becomes a response."""
        try:
            response = await self._route(request)
        except (ServingError, EngineError) as error:
            status = next(status for kind, status in _STATUS if isinstance(error, kind))
            response = error_response(status, str(error), headers=(("retry-after", "1"),) if status == 503 else ())
        self._statuses[response.status] += 1
        return response

    async def _route(self, request: Request) -> Response:
        route = routes.parse(request.target)
        if route is None:
            return error_response(404, f"there is nothing at {request.target[:200]}")
        allowed = METHODS[route.kind]
        if request.method not in allowed:
            return error_response(
                405, f"{request.target[:200]} takes {' and '.join(allowed)}", headers=(("allow", ", ".join(allowed)),)
            )
        match route.kind:
            case "infer":
                return await self._infer(request, route)
            case "model":
                return json_response(_describe(self._table.lookup(route.model, route.version)))
            case "model-ready":
                self._table.lookup(route.model, route.version)
                return json_response({"name": route.model, "ready": True})
            case "live":
                return json_response({"live": True})
            case "ready":
                return json_response({"ready": True})
            case "metrics":
                return Response(200, self._metrics(), metrics.CONTENT_TYPE)
            case "server":
                return json_response(
                    {
                        "name": "edgewise-agent",
                        "version": metadata.version("edgewise-agent"),
                        "extensions": EXTENSIONS,
                    }
                )

    async def _infer(self, request: Request, route: Route) -> Response:
        if "content-length" not in request.headers and "transfer-encoding" not in request.headers:
            return error_response(411, "an inference request needs Content-Length or Transfer-Encoding: chunked")
        active = self._table.lookup(route.model, route.version)
        size = len(request.body)
        asked = await self._run(size, lambda: self._decode(request, active))
        answer = await self._table.infer(route.model, route.version, asked.inputs)
        size = sum(array.nbytes for array in answer.outputs.values())
        coding = compression.choose(request.headers.get("accept-encoding", ""))
        return await self._run(size, lambda: _encode(asked, answer, coding))

    def _decode(self, request: Request, active: ActiveModel) -> InferRequest:
        body = compression.decompress(
            request.body, request.headers.get("content-encoding", ""), self._limits.body_bytes
        )
        length = request.headers.get(HEADER_LENGTH)
        if length is not None and not (length.isascii() and length.isdigit() and len(length) <= 12):
            raise RequestError(f"Inference-Header-Content-Length is not a number: {length[:40]!r}")
        return decode_request(body, None if length is None else int(length), active.manifest)

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        if size < self._limits.offload_bytes:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._beside, work)

    def _metrics(self) -> bytes:
        answered = metrics.Metric(
            "edgewise_http_responses_total",
            "counter",
            "HTTP responses by status.",
            [metrics.Sample({"status": str(code)}, n) for code, n in sorted(self._statuses.items())],
        )
        more = [metric for source in self.more_metrics for metric in source()]
        return metrics.render([answered, *metrics.of_models(self._table.active()), *more])


def _encode(asked: InferRequest, answer: Answer, coding: str | None) -> Response:
    encoded = encode_response(asked, answer.outputs, answer.active.manifest)
    headers: list[tuple[str, str]] = []
    kind = JSON
    if encoded.header_length is not None:
        kind = BINARY
        headers.append(("Inference-Header-Content-Length", str(encoded.header_length)))
    body = encoded.body
    if coding is not None and len(body) >= compression.MIN_BYTES:
        body = compression.compress(body, coding)
        headers += [("content-encoding", coding), ("vary", "accept-encoding")]
    return Response(200, body, kind, tuple(headers))


def _describe(active: ActiveModel) -> dict[str, Any]:
    manifest = active.manifest
    return {
        "name": active.model,
        "versions": [str(active.version)],
        "platform": f"{manifest.requires.engine}_{manifest.format}",
        "inputs": [_tensor(spec) for spec in manifest.inputs],
        "outputs": [_tensor(spec) for spec in manifest.outputs],
        "parameters": {"sha256": active.sha256, "profile": manifest.profile, "precision": manifest.precision},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.dtype, "shape": list(spec.shape)}
