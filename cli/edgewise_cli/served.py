"""A model that a device serves, timed over the Open Inference Protocol v2 (REST), and what the device says of it.

What is measured holds the network and HTTP. The device's own statistics, which an Edgewise agent offers at
`/metrics`, hold the engine alone; both are told apart.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec
import numpy as np
from edgewise_protocol.latencies import Bin, Latencies, histogram, summarise
from numpy.typing import NDArray

from edgewise_cli.errors import MissingError, RefusedError, UnreachableError, UsageError

MAX_MODELS: Final = 32
_MAX_CALLS: Final = 1_000_000
_MAX_ANSWER: Final = 64 << 20
_MAX_ELEMENTS: Final = 1 << 28
_ROUND_S: Final = 0.25
_WARM_UP: Final = 0.1
_TYPES: Final[dict[str, str]] = {
    "BOOL": "bool",
    **{f"INT{n}": f"int{n}" for n in (8, 16, 32, 64)},
    **{f"UINT{n}": f"uint{n}" for n in (8, 16, 32, 64)},
    **{f"FP{n}": f"float{n}" for n in (16, 32, 64)},
}
_LENGTH: Final = "Inference-Header-Content-Length"
Tensors = Mapping[str, NDArray[Any]]
Progress = Callable[[str, float | None], None]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A model to ask; `inputs` None makes numbers up from what the device says of it."""

    model: str
    version: str = ""
    inputs: Any = None


class OnDevice(msgspec.Struct, frozen=True, kw_only=True):
    """What the device itself counted meanwhile."""

    requests: int
    mean_ms: float
    """Within the engine, per request."""
    shared: bool
    """Whether it answered others meanwhile, so that the mean is also theirs."""


class ServedTimed(msgspec.Struct, frozen=True, kw_only=True):
    """One served model, measured from here."""

    name: str
    version: str
    platform: str
    inputs: str
    """`golden` or `made up`."""
    latencies: Latencies
    histogram: tuple[Bin, ...]
    on_device: OnDevice | None
    measured_on: str


class ServedReport(msgspec.Struct, frozen=True, kw_only=True):
    """Several models of one device, asked in turn."""

    url: str
    server: str
    seconds: float
    timed: tuple[ServedTimed, ...]


class Served(msgspec.Struct, frozen=True):
    """The report, and every request's duration by model, nanoseconds."""

    report: ServedReport
    times_ns: tuple[list[int], ...]


class _Model:
    """A model and the request that it is asked, ready to be sent."""

    def __init__(self, http: httpx.Client, asked: Asked, binary: bool) -> None:
        self.path = f"/v2/models/{quote(asked.model, safe='')}"
        if asked.version:
            self.path += f"/versions/{quote(asked.version, safe='')}"
        about = _json(http, self.path)
        self.name = asked.model
        self.version = asked.version or ",".join(str(v) for v in about.get("versions", ()))[:40]
        self.platform = str(about.get("platform", ""))[:80]
        self.kind = "made up" if asked.inputs is None else "golden"
        inputs = asked.inputs if asked.inputs is not None else made_up(about.get("inputs"), asked.model)
        self.body, self.headers = encode(inputs, binary=binary)
        self.times_ns: list[int] = []

    def ask(self, http: httpx.Client) -> int:
        """One request; its duration, nanoseconds."""
        start = time.perf_counter_ns()
        response = _send(http, "POST", f"{self.path}/infer", content=self.body, headers=self.headers)
        end = time.perf_counter_ns()
        if response.status_code != 200:
            raise RefusedError(f"{self.name} answers HTTP {response.status_code}: {_said(response)}", code="inference")
        return end - start


def bench_served(url: str, asked: Sequence[Asked], seconds: float, progress: Progress) -> Served:
    """Time requests, one after another on one connection, models in turn.

    Args:
        url: of the device's endpoint.
        asked: at least one.
        seconds: for each, warm-up included.
        progress: called with what is being done, and the share of the whole that is behind.

    Raises:
        UsageError: the URL is none, or an argument is out of bounds.
        UnreachableError: nothing answers, or not in this protocol.
        MissingError: no such model is served.
        RefusedError: the model cannot be asked this.
    """
    if not 1 <= len(asked) <= MAX_MODELS or not 0 < seconds <= 3600:
        raise UsageError(f"between 1 and {MAX_MODELS} models and at most 3600 seconds are possible")
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--url {url[:80]!r}: it begins with http:// or https://")
    try:
        http = httpx.Client(base_url=url, timeout=httpx.Timeout(60.0, connect=5.0))
    except (httpx.InvalidURL, ValueError) as error:
        raise UsageError(f"--url {url[:80]!r}: {error}") from error
    with http:
        server = _json(http, "/v2")
        models = [_Model(http, one, "binary_tensor_data" in server.get("extensions", ())) for one in asked]
        for model in models:
            _for(seconds * _WARM_UP, lambda m=model: m.ask(http))  # type: ignore[misc]
        before = [_counted(http, m) for m in models]
        rounds = int(min(max(seconds / _ROUND_S, 4), 200))
        for done in range(rounds):
            progress(f"round {done + 1} of {rounds}", done / rounds)
            for model in models if done % 2 == 0 else reversed(models):
                model.times_ns += _for(seconds * (1 - _WARM_UP) / rounds, lambda m=model: m.ask(http))  # type: ignore[misc]
        after = [_counted(http, m) for m in models]
    name = f"{server.get('name', 'an unnamed server')} {server.get('version', '')}".strip()[:80]
    where = f"at {url} from this machine: network, HTTP and the device's queue included"
    timed = tuple(
        ServedTimed(
            name=m.name,
            version=m.version,
            platform=m.platform,
            inputs=m.kind,
            latencies=summarise(m.times_ns),
            histogram=histogram(m.times_ns),
            on_device=_between(a, b, len(m.times_ns)),
            measured_on=where,
        )
        for m, a, b in zip(models, before, after, strict=True)
    )
    report = ServedReport(url=url, server=name, seconds=seconds, timed=timed)
    return Served(report, tuple(m.times_ns for m in models))


def made_up(specs: Any, model: str) -> Tensors:
    """Inputs of one sample from a model's metadata: standard normal numbers of a fixed seed, zeros for integers. Pure.

    Raises:
        UnreachableError: the metadata are not those of the protocol.
        RefusedError: a tensor's type or size is not one that can be made up.
    """
    found: dict[str, NDArray[Any]] = {}
    try:
        for spec in specs:
            name, datatype, shape = str(spec["name"]), str(spec["datatype"]), [int(n) for n in spec["shape"]]
            shape = [1 if n < 0 else n for n in shape]
            if datatype not in _TYPES or int(np.prod(shape, dtype=object)) > _MAX_ELEMENTS:
                raise RefusedError(
                    f"{model}: no numbers can be made up for the input {name[:60]!r} ({datatype[:20]} {shape}); name a "
                    "bundle, which brings its own",
                    code="inference",
                )
            dtype = np.dtype(_TYPES[datatype])
            made = np.random.default_rng(0).standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
            found[name] = made.astype(dtype)
    except (TypeError, KeyError, ValueError) as error:
        raise UnreachableError(f"what the server says of {model} is not of the Open Inference Protocol") from error
    return found


def encode(inputs: Tensors, *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """A request's body and headers. Pure.

    Args:
        inputs: by name.
        binary: with the protocol's binary tensor data extension.
    """
    names = {np.dtype(dtype): name for name, dtype in _TYPES.items()}
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, array in inputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": names[array.dtype], "shape": list(array.shape)}
        if binary:
            raw.append(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    head: dict[str, Any] = {"inputs": tensors}
    if binary:
        head["parameters"] = {"binary_data_output": True}
    text = json.dumps(head).encode()
    headers = {"Content-Type": "application/octet-stream" if binary else "application/json"}
    if binary:
        headers[_LENGTH] = str(len(text))
    return text + b"".join(raw), headers


def _for(seconds: float, ask: Callable[[], int]) -> list[int]:
    ends = time.perf_counter() + seconds
    times = [ask()]
    while time.perf_counter() < ends and len(times) < _MAX_CALLS:
        times.append(ask())
    return times


def _counted(http: httpx.Client, model: _Model) -> tuple[int, float] | None:
    """Requests that the device's engine answered for a model, and their seconds; None where it does not tell."""
    response = _send(http, "GET", "/metrics")
    if response.status_code != 200 or len(response.content) > _MAX_ANSWER:
        return None
    return counted(response.text, model.name, model.version)


def counted(text: str, model: str, version: str) -> tuple[int, float] | None:
    """Count and sum of `edgewise_inference_seconds` of a model in a Prometheus exposition. Pure."""
    labels = f'{{model="{model}",version="{version}"}}'
    values = {}
    for line in text.splitlines():
        for suffix in ("_count", "_sum"):
            if line.startswith(f"edgewise_inference_seconds{suffix}{labels} "):
                try:
                    values[suffix] = float(line.rpartition(" ")[2])
                except ValueError:
                    return None
    return (int(values["_count"]), values["_sum"]) if len(values) == 2 else None


def _between(before: tuple[int, float] | None, after: tuple[int, float] | None, ours: int) -> OnDevice | None:
    if before is None or after is None or (requests := after[0] - before[0]) <= 0:
        return None
    mean = (after[1] - before[1]) * 1000 / requests
    return OnDevice(requests=requests, mean_ms=round(mean, 6), shared=requests != ours)


def _json(http: httpx.Client, path: str) -> dict[str, Any]:
    response = _send(http, "GET", path)
    if response.status_code == 404 and path != "/v2":
        raise MissingError(f"{http.base_url} serves nothing at {path}: {_said(response)}")
    try:
        found = response.json() if response.status_code == 200 else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UnreachableError(
            f"{http.base_url} does not speak the Open Inference Protocol: {path} answers HTTP {response.status_code}"
        )
    return found


def _send(http: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
    try:
        return http.request(method, path, **more)
    except httpx.HTTPError as error:
        raise UnreachableError(f"{http.base_url} cannot be reached: {str(error) or type(error).__name__}") from error


def _said(response: httpx.Response) -> str:
    try:
        found = response.json().get("error", "")
    except (ValueError, AttributeError):
        found = response.text
    return str(found)[:300]
