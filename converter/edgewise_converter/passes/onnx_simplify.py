"""Fewer nodes with the same answers: constants folded, branches decided, what is not used left out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

from edgewise_converter.errors import PassError, UnchangedError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.onnx_answers import hold_same
from edgewise_converter.passes.onnx_catalogue import OnnxSimplifyConfig
from edgewise_converter.passes.onnx_graph import canonical
from edgewise_converter.passes.onnx_scopes import load, scopes

_NAME: Final = "onnx_simplify"
_ERRORS_ONLY: Final = 4
_FOLDED_BYTES: Final = 2**20
"""A node's folded result is no larger: else a short file would become a long one."""


def apply(materials: Materials, before: Artifact, config: OnnxSimplifyConfig) -> Artifact:
    """Simplify a graph, and hold that it answers as before.

    Raises:
        UnchangedError: no node less is needed.
        PassError: no way of simplifying keeps the answers.
    """
    model = load(before.data, materials.model)
    nodes = count(model)
    faults = []
    for way in (_slim, _offline):
        try:
            with quietly(progress_bars=True):
                found = load(canonical(way(model), materials.input_names, materials.output_names), materials.model)
            data = canonical(found, materials.input_names, materials.output_names)
            if count(found) >= nodes:
                continue
            hold_same(before.data, data, materials.calibration, f"{materials.model}, simplified,")
        except PassError as error:
            faults.append(str(error))
            continue
        return Artifact(data, before.format, before.precision)
    if faults:
        raise PassError(f"{materials.model} cannot be simplified: {faults[0]}")
    raise UnchangedError(f"{_NAME} changed nothing: no node of {nodes} can be folded, joined or left out")


def count(model: Any) -> int:
    """Nodes of a model, also inside of others."""
    return sum(len(scope.graph.node) for scope in scopes(model))


def _slim(model: Any) -> Any:
    """By onnxslim.

    Raises:
        PassError: it fails.
    """
    onnx, onnxslim = need("onnx"), need("onnxslim")
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    try:
        return onnxslim.slim(copy, size_threshold=_FOLDED_BYTES)
    except Exception as error:
        raise PassError(f"onnxslim fails: {str(error)[:200]}") from error


def _offline(model: Any) -> Any:
    """By onnxruntime's own optimizations that hold on every processor and stay within the standard.

    Raises:
        PassError: it refuses the model.
    """
    onnx, ort = need("onnx"), need("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = _ERRORS_ONLY
    with tempfile.TemporaryDirectory(prefix="edgewise-simplify-") as folder:
        out = Path(folder) / "model.onnx"
        options.optimized_model_filepath = str(out)
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return onnx.load(out)
        except Exception as error:
            raise PassError(f"onnxruntime refuses the graph: {str(error)[:200]}") from error
