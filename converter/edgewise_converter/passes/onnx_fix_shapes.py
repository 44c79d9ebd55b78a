"""Free dimensions to sizes, so that what depends on shapes can be folded away."""

from __future__ import annotations

from typing import Any, Final

from edgewise_converter.errors import PassError, UnchangedError
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.onnx_answers import Graph, hold_same
from edgewise_converter.passes.onnx_catalogue import OnnxFixShapesConfig
from edgewise_converter.passes.onnx_graph import canonical
from edgewise_converter.passes.onnx_scopes import load, scopes

_NAME: Final = "onnx_fix_shapes"


def apply(materials: Materials, before: Artifact, config: OnnxFixShapesConfig) -> Artifact:
    """Fix every free dimension of the inputs, and of the outputs as it follows from them.

    Raises:
        UnchangedError: no input has a free dimension.
        PassError: sizes contradict each other or name no dimension, or the graph does not run with them.
    """
    model = load(before.data, materials.model)
    sizes = dict(config.sizes)
    free = [(value, axis) for value in model.graph.input for axis in range(_rank(value)) if not _fixed(value, axis)]
    if not free:
        raise UnchangedError(f"{_NAME} changed nothing: it looks for a free dimension of an input")
    if unknown := sorted(set(sizes) - {name for value, axis in free for name in _names(value, axis)}):
        raise PassError(f"{_NAME}: {unknown[0]!r} is no free dimension of {materials.model}: {_listed(free)}")
    by_name: dict[str, int] = {}
    for value, axis in free:
        size = next((sizes[n] for n in _names(value, axis) if n in sizes), None)
        size = _of_requests(materials, config, value.name, axis) if size is None else size
        called = _names(value, axis)[0]
        if by_name.setdefault(called, size) != size:
            raise PassError(f"{_NAME}: the dimension {called!r} is {by_name[called]} and {size} at once")
    for value, axis in free:
        value.type.tensor_type.shape.dim[axis].dim_value = by_name[_names(value, axis)[0]]
    for scope in scopes(model):
        del scope.graph.value_info[:]
    _fix_outputs(model, by_name, materials.model)
    data = canonical(model, materials.input_names, materials.output_names)
    hold_same(before.data, data, materials.calibration, f"{materials.model} with fixed shapes")
    return Artifact(data, before.format, before.precision)


def _fix_outputs(model: Any, by_name: dict[str, int], what: str) -> None:
    """Say of outputs what onnxruntime infers of them."""
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in by_name:
                dim.dim_value = by_name[dim.dim_param]
            elif not dim.HasField("dim_value"):
                dim.ClearField("dim_param")
    inferred = Graph(model.SerializeToString(), f"{what} with fixed shapes").outputs
    for value in model.graph.output:
        shape = value.type.tensor_type.shape
        for dim, size in zip(shape.dim, inferred[value.name], strict=False):
            if isinstance(size, int) and size > 0:
                dim.dim_value = size


def _rank(value: Any) -> int:
    return len(value.type.tensor_type.shape.dim)


def _fixed(value: Any, axis: int) -> bool:
    dim = value.type.tensor_type.shape.dim[axis]
    return bool(dim.HasField("dim_value") and dim.dim_value > 0)


def _names(value: Any, axis: int) -> tuple[str, ...]:
    """What settings may call a dimension."""
    param = value.type.tensor_type.shape.dim[axis].dim_param
    place = f"{value.name}:{axis}"
    return (param, place) if param else (place,)


def _listed(free: list[tuple[Any, int]]) -> str:
    return ", ".join(sorted({_names(value, axis)[0] for value, axis in free})[:20])


def _of_requests(materials: Materials, config: OnnxFixShapesConfig, name: str, axis: int) -> int:
    requests = materials.calibration
    if requests.batched and axis == 0:
        return config.batch
    shape = requests.feeds[name].shape if name in requests.feeds else ()
    place = axis if requests.batched else axis + 1
    if place >= len(shape):
        raise PassError(f"{_NAME}: the calibration requests do not say how large {name}:{axis} is; name its size")
    return int(shape[place])
