"""Inference requests and responses of the Open Inference Protocol v2 (REST). Pure: no I/O.

With the binary tensor data extension a body is JSON, of the length that the header
`Inference-Header-Content-Length` gives, followed by the raw bytes of the tensors that the
JSON names by `binary_data_size`, in its order. A length of 0 is the raw binary request: the
whole body is the model's only input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from edgewise_protocol.manifest import Manifest, TensorSpec
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray

from edgewise_agent.engines.base import Tensors, shape_fits
from edgewise_agent.engines.dtypes import NUMPY
from edgewise_agent.serving.errors import RequestError
from edgewise_agent.serving.tensors import (
    bytes_to_binary,
    from_binary,
    from_json,
    to_binary,
    to_json,
    top_classes,
)

MAX_TENSORS: Final = 64
MAX_CLASSES: Final = 10_000
_OWN_PARAMETERS: Final = frozenset({"binary_data_output"})
"""Request parameters that are about the transport; the others are handed back."""

_Name = Annotated[str, Meta(max_length=200)]
_Parameters = dict[str, Any]


class _Input(msgspec.Struct):
    name: _Name
    datatype: _Name
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**31 - 1)], ...], Meta(max_length=8)]
    parameters: _Parameters = {}
    data: msgspec.Raw | UnsetType = UNSET


class _Output(msgspec.Struct):
    name: _Name
    parameters: _Parameters = {}


class _Request(msgspec.Struct):
    inputs: Annotated[list[_Input], Meta(max_length=MAX_TENSORS)]
    outputs: Annotated[list[_Output], Meta(max_length=MAX_TENSORS)] = []
    id: Annotated[str, Meta(max_length=1024)] = ""
    parameters: _Parameters = {}


class Wanted(NamedTuple):
    """One output that the client asked for."""

    spec: TensorSpec
    binary: bool
    classes: int
    """Of the classification extension; 0 asks for the tensor itself."""


class InferRequest(NamedTuple):
    """A request that the model can be asked."""

    inputs: dict[str, NDArray[Any]]
    wanted: tuple[Wanted, ...]
    id: str
    parameters: _Parameters


class Encoded(NamedTuple):
    """A response's body, and the length of its JSON where binary data follow it."""

    body: bytes
    header_length: int | None


_decoder = msgspec.json.Decoder(_Request)


def decode_request(body: bytes, header_length: int | None, manifest: Manifest) -> InferRequest:
    """Parse and check a request.

    Args:
        body: after content codings were undone.
        header_length: `Inference-Header-Content-Length`, or None without that header.

    Raises:
        RequestError: anything about it is not as the protocol and the manifest say.
    """
    if header_length == 0:
        return _raw_binary(body, manifest)
    if header_length is not None and not 0 < header_length <= len(body):
        raise RequestError(f"Inference-Header-Content-Length is {header_length}; the body has {len(body)} bytes")
    split = len(body) if header_length is None else header_length
    request, unusual = _parse(body[:split])
    specs = {spec.name: spec for spec in manifest.inputs}
    inputs: dict[str, NDArray[Any]] = {}
    rest = memoryview(body)[split:]
    for i, tensor in enumerate(request.inputs):
        if tensor.name in inputs:
            raise RequestError(f"input {tensor.name!r} is given twice")
        spec = _check(tensor, specs)
        size = _integer(tensor.parameters, "binary_data_size")
        has_json = tensor.data is not UNSET or unusual[i] is not None
        if (size is None) != has_json:
            raise RequestError(f"input {tensor.name!r} must have either data or binary_data_size")
        if size is not None:
            if size > len(rest):
                raise RequestError(f"input {tensor.name!r} names {size} bytes of binary data; {len(rest)} are left")
            inputs[tensor.name] = from_binary(rest[:size], spec.dtype, tensor.shape, tensor.name)
            rest = rest[size:]
        else:
            data = unusual[i] if isinstance(tensor.data, UnsetType) else tensor.data
            inputs[tensor.name] = from_json(data if data is not None else [], spec.dtype, tensor.shape, tensor.name)
    if len(rest):
        raise RequestError(f"{len(rest)} bytes after the JSON belong to no input")
    missing = [name for name in specs if name not in inputs]
    if missing:
        raise RequestError(f"input {missing[0]!r} is missing; the model takes {', '.join(map(repr, specs))}")
    parameters = {name: value for name, value in request.parameters.items() if name not in _OWN_PARAMETERS}
    return InferRequest(inputs, _wanted(request, manifest), request.id, parameters)


def encode_response(request: InferRequest, outputs: Tensors, manifest: Manifest) -> Encoded:
    """The body that answers `request`, from a version with this manifest."""
    tensors: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for wanted in request.wanted:
        array = outputs[wanted.spec.name]
        shape, datatype = list(array.shape), str(wanted.spec.dtype)
        if wanted.classes:
            rows = top_classes(array, wanted.classes, manifest.labels)
            shape, datatype = [len(rows), len(rows[0])] if array.ndim > 1 else [len(rows[0])], "BYTES"
            data: Any = [item.decode() for row in rows for item in row]
            raw = bytes_to_binary(rows) if wanted.binary else b""
        else:
            data = None if wanted.binary else to_json(array)
            raw = to_binary(array) if wanted.binary else b""
        tensor: dict[str, Any] = {"name": wanted.spec.name, "datatype": datatype, "shape": shape}
        if wanted.binary:
            binary.append(raw)
            tensor["parameters"] = {"binary_data_size": len(raw)}
        else:
            tensor["data"] = data
        tensors.append(tensor)
    head: dict[str, Any] = {"model_name": manifest.model, "model_version": str(manifest.version)}
    if request.id:
        head["id"] = request.id
    if request.parameters:
        head["parameters"] = request.parameters
    text = msgspec.json.encode({**head, "outputs": tensors})
    return Encoded(b"".join([text, *binary]), len(text) if binary else None)


def _parse(text: bytes) -> tuple[_Request, list[list[Any] | None]]:
    """The request; and for each input its data where they hold tokens that are not JSON proper."""
    try:
        request = _decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        if b"NaN" in text or b"Infinity" in text:
            return _parse_unusual(text)
        raise RequestError(f"this is not an inference request: {error}") from error
    return request, [None] * len(request.inputs)


def _parse_unusual(text: bytes) -> tuple[_Request, list[list[Any] | None]]:
    try:
        found = json.loads(text)
        data = [tensor.pop("data", None) for tensor in found["inputs"]]
        if any(item is not None and not isinstance(item, list) for item in data):
            raise RequestError("this is not an inference request: data must be an array")
        return msgspec.convert(found, _Request), data
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RequestError(f"this is not an inference request: {error}") from error


def _raw_binary(body: bytes, manifest: Manifest) -> InferRequest:
    if len(manifest.inputs) != 1:
        raise RequestError("a raw binary request needs a model with one input")
    (spec,) = manifest.inputs
    known = math.prod(size for size in spec.shape if size != -1) * NUMPY[spec.dtype].itemsize
    free = spec.shape.count(-1)
    if free > 1 or not known or len(body) % known or (not free and len(body) != known):
        raise RequestError(f"{len(body)} bytes are not a tensor of {spec.dtype} and shape {list(spec.shape)}")
    shape = [len(body) // known if size == -1 else size for size in spec.shape]
    wanted = tuple(Wanted(output, True, 0) for output in manifest.outputs)
    return InferRequest({spec.name: from_binary(memoryview(body), spec.dtype, shape, spec.name)}, wanted, "", {})


def _check(tensor: _Input, specs: Mapping[str, TensorSpec]) -> TensorSpec:
    spec = specs.get(tensor.name)
    if spec is None:
        raise RequestError(f"the model has no input {tensor.name!r}; it takes {', '.join(map(repr, specs))}")
    if tensor.datatype != spec.dtype:
        raise RequestError(f"input {tensor.name!r} is {spec.dtype}; got {tensor.datatype}")
    if not shape_fits(spec.shape, tensor.shape):
        raise RequestError(f"input {tensor.name!r} has the shape {list(spec.shape)}; got {list(tensor.shape)}")
    return spec


def _wanted(request: _Request, manifest: Manifest) -> tuple[Wanted, ...]:
    default = request.parameters.get("binary_data_output", False)
    if not isinstance(default, bool):
        raise RequestError("the parameter binary_data_output must be true or false")
    specs = {spec.name: spec for spec in manifest.outputs}
    if not request.outputs:
        return tuple(Wanted(spec, default, 0) for spec in specs.values())
    found: dict[str, Wanted] = {}
    for output in request.outputs:
        if output.name not in specs or output.name in found:
            raise RequestError(
                f"output {output.name!r} is asked for twice or not known; the model gives {', '.join(map(repr, specs))}"
            )
        binary = output.parameters.get("binary_data", default)
        if not isinstance(binary, bool):
            raise RequestError(f"output {output.name!r}: the parameter binary_data must be true or false")
        classes = _integer(output.parameters, "classification") or 0
        found[output.name] = Wanted(specs[output.name], binary, min(classes, MAX_CLASSES))
    return tuple(found.values())


def _integer(parameters: _Parameters, name: str) -> int | None:
    value = parameters.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise RequestError(f"the parameter {name} must be a whole number, not below 0")
    return value
