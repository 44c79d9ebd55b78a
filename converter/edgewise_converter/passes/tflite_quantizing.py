"""What the passes that quantize TFLite files share: one plain file to begin with, layers, and the quantizer's call.

A finished file may lack a signature, keep its constants as float16 or sparsely, or call two tensors the same: all
of that misleads ai-edge-quantizer, which knows tensors by name. So a file is brought into one form first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgewise_converter.errors import ModelFileError, PassError, UnchangedError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.tflite_file.compat import hybrid
from edgewise_converter.tflite_file.fusing import fuse_activations
from edgewise_converter.tflite_file.operators import Operator, operators
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.signatures import sign
from edgewise_converter.tflite_file.tensors import FLOAT16, FLOAT32, INT8, is_constant
from edgewise_converter.tflite_file.unfolding import unfold, widen_weights
from edgewise_converter.tflite_file.writing import write

_FOREIGN: Final = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, AssertionError)
PASSIVE: Final = frozenset(
    {"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "SLICE", "STRIDED_SLICE", "SPLIT", "PACK", "UNPACK", "GATHER",
     "CONCATENATION", "PAD", "PADV2", "MIRROR_PAD", "MAX_POOL_2D", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "BROADCAST_TO",
     "GATHER_ND", "RESIZE_NEAREST_NEIGHBOR"}
)  # fmt: skip
"""Operators that hand values on: they lose nothing by themselves, and go with what makes their input."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A float file in the form that is quantized: signed, unfolded, each tensor called by its index."""

    data: bytes
    operators: tuple[Operator, ...]
    """Of the main graph, in order; `layer` is the scope by which the quantizer knows it."""
    names: tuple[str, ...]
    """What each of them is called outside: after the first tensor that it made in the file, made unique."""


def plain(before: Artifact, name: str, *, widen: bool = False) -> Plain:
    """Bring a file into that form.

    Args:
        before: a float TFLite file.
        name: the model's, for messages.
        widen: take a file whose weights alone are int8 too, as if they were float.

    Raises:
        UnchangedError: it is quantized already.
        PassError: it cannot be read.
    """
    try:
        model = read(before.data, name)
        make_plain(model, name, widen=widen)
        model = read(write(model, names=True), name)
    except ModelFileError as error:
        raise PassError(f"{name} cannot be quantized: {error}") from error
    found = tuple(operator for operator in operators(model) if operator.graph == 0)
    names: dict[str, None] = {}
    for operator in found:
        wanted = operator.layer or f"operator {operator.position}"
        names[wanted if wanted not in names else f"{wanted}#{operator.position}"] = None
    for place, graph in enumerate(model.subgraphs):
        for index, tensor in enumerate(graph.tensors):
            tensor.name = scope(place, index).encode()
    data = write(model, names=True)
    renamed = tuple(operator for operator in operators(model) if operator.graph == 0)
    return Plain(data, renamed, tuple(names))


def make_plain(model: Any, name: str, *, widen: bool) -> None:
    """Unfold, fuse and sign a model (`ModelT`); see `plain`.

    Raises:
        UnchangedError, ModelFileError: see there.
    """
    if widen:
        widen_weights(model)
    refuse_quantized(model, name)
    unfold(model)
    fuse_activations(model)
    sign(model)


def scope(graph: int, index: int) -> str:
    """What a tensor of the plain file is called."""
    return f"g{graph}t{index}"


def refuse_quantized(model: Any, name: str) -> None:
    """Hold a model (`ModelT`) to be float.

    Raises:
        UnchangedError: a tensor of it has a scale.
    """
    for operator in operators(model):
        tensors = model.subgraphs[operator.graph].tensors
        if hybrid(model, operator):
            raise UnchangedError(
                f"{name} has int8 weights already: {operator.place} reads some; tflite_float32 makes them float again"
            )
        for index in (*operator.inputs, *operator.outputs):
            quantization = tensors[index].quantization if index >= 0 else None
            narrow = index >= 0 and tensors[index].type not in (FLOAT32, FLOAT16)
            if narrow and quantization is not None and quantization.scale is not None and len(quantization.scale):
                raise UnchangedError(
                    f"{name} is quantized already: {operator.place} works on integers with a scale; "
                    "begin with the float file that it was made from"
                )


def quantizable(file: Plain, recipe: Any) -> tuple[bool, ...]:
    """Which operators the quantizer has a rule for, by this recipe."""
    manager = need("ai_edge_quantizer.recipe_manager").RecipeManager()
    codes = need("ai_edge_quantizer.utils.tfl_flatbuffer_utils").TFL_OP_CODE_TO_NAME
    numbers = vars(need("ai_edge_litert.schema_py_generated").BuiltinOperator)
    with quietly():
        manager.load_quantization_recipe(recipe)
    found = []
    for operator in file.operators:
        code = codes.get(numbers.get(operator.name)) if operator.builtin else None
        rule = manager.get_quantization_configs(code, operator.layer + ";")[0] if code is not None else "no_quantize"
        found.append(str(getattr(rule, "value", rule)) != "no_quantize")
    return tuple(found)


def active_layers(file: Plain, recipe: Any) -> tuple[str, ...]:
    """Names of the operators that lose by being quantized, in the graph's order."""
    fits = quantizable(file, recipe)
    return tuple(
        name
        for name, operator, fit in zip(file.names, file.operators, fits, strict=True)
        if fit and operator.name not in PASSIVE
    )


def kept_scopes(file: Plain, recipe: Any, keep_float: Sequence[str], *, float_io: bool) -> list[str]:
    """Scopes that stay in float: the named layers, and what only hands on their values.

    Raises:
        PassError: a name is none of the file's.
    """
    if unknown := sorted(set(keep_float) - set(file.names)):
        raise PassError(f"no layer is called {unknown[0]!r}; the file has {', '.join(file.names[:20])} ...")
    fits, kept = quantizable(file, recipe), set(keep_float)
    if not kept:
        return []
    makers: dict[int, bool] = {}
    found = []
    for name, operator, fit in zip(file.names, file.operators, fits, strict=True):
        sources = [makers.get(i, float_io) for i in operator.inputs[:1] if i >= 0]
        if operator.name == "CONCATENATION" or operator.name == "PACK":
            sources = [makers.get(i, float_io) for i in operator.inputs if i >= 0]
        stays = name in kept or not fit or (operator.name in PASSIVE and bool(sources) and all(sources))
        makers |= dict.fromkeys(operator.outputs, stays)
        if stays and fit:
            found.append(operator.layer)
    return found


def with_kept(recipe: Any, kept: Sequence[str], *, float_io: bool = False) -> Any:
    """The recipe, but for some scopes, and for the graphs that operators run (If, While, composites)."""
    settings = list(recipe)
    patterns = [r"^g[1-9][0-9]*t"] + ([f"^(?:{'|'.join(map(re.escape, kept))});"] if kept else [])
    settings += [_float(pattern, "*") for pattern in patterns]
    if float_io:
        settings += [_float(".*", "INPUT"), _float(".*", "OUTPUT")]
    return settings


def _float(pattern: str, operation: str) -> dict[str, Any]:
    return {"regex": pattern, "operation": operation, "algorithm_key": "no_quantize", "op_config": {}}


def run_quantizer(file: Plain, recipe: Any, ranges: Any, materials: Materials) -> Any:
    """What ai-edge-quantizer makes of a plain file, as a model (`ModelT`).

    Args:
        ranges: by tensor name, as the quantizer takes them; None where the recipe needs none.

    Raises:
        PassError: it refuses the file.
    """
    quantizer = need("ai_edge_quantizer.quantizer")
    try:
        with quietly(progress_bars=True):
            result = quantizer.Quantizer(bytearray(file.data), recipe).quantize(
                ranges, enable_progress_bar=False, enable_progress_report=False
            )
        return read(bytes(result.quantized_model or b""), f"the quantized {materials.model}")
    except _FOREIGN as error:
        raise PassError(f"{materials.model} cannot be quantized: {str(error)[:400]}") from error
    except ModelFileError as error:
        raise PassError(f"{materials.model} cannot be quantized: the quantizer gave no sound file: {error}") from error


def narrow_constants(model: Any) -> int:
    """How many int8 constants with a scale operators of the model (`ModelT`) read."""
    found = set()
    for operator in operators(model):
        tensors = model.subgraphs[operator.graph].tensors
        for index in operator.inputs:
            if index >= 0 and tensors[index].type == INT8 and is_constant(model, tensors[index]):
                found.add((operator.graph, index))
    return len(found)


def as_ranges(file: Plain, measured: dict[int, tuple[float, float]]) -> dict[str, dict[str, Any]]:
    """Measured ranges by tensor name, in the quantizer's form."""
    tensors = read(file.data).subgraphs[0].tensors
    found = {}
    for index, (low, high) in measured.items():
        shape = (1,) * len(tensors[index].shape if tensors[index].shape is not None else ())
        found[scope(0, index)] = {"min": np.full(shape, low, np.float32), "max": np.full(shape, high, np.float32)}
    return found
