"""The ONNX side of a training step: translation of the traced graph, stripping, and what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import onnx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgewise_trainer.errors import ExportError
from edgewise_trainer.training_graph.backend import plain_operators, quiet_exporter
from edgewise_trainer.training_graph.convolution import spread
from edgewise_trainer.training_graph.step import Step

OPSET: Final = 20
MAX_BATCH: Final = 4096
STANDARD_DOMAINS: Final = ("", "ai.onnx")
RANDOM_OPERATORS: Final = (
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)


def to_onnx(step: Step, graph: GraphModule, x: Tensor, y: Tensor) -> onnx.ModelProto:
    """Translate a traced step; x (N, ...), y (N,) are an example batch, N >= 3.

    Raises:
        ExportError: torch's exporter cannot translate it.
    """
    arguments = (x, y, torch.tensor(0.1), torch.tensor(0.0), *step.state)
    batch = torch.export.Dim("batch", min=2, max=MAX_BATCH)
    shapes = (({0: batch}, {0: batch}, *({} for _ in arguments[2:])),)
    try:
        with plain_operators(), quiet_exporter():
            program = torch.export.export(_Traced(graph), arguments, dynamic_shapes=shapes, strict=False)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(step.inputs),
                output_names=list(step.outputs),
                custom_translation_table={torch.ops.aten.max_pool2d_with_indices.default: _max_pool_with_indices},
                verbose=False,
            )
    except Exception as error:
        # The exporter raises whatever its passes raise.
        raise ExportError(f"torch cannot write the training step as ONNX: {str(error)[:1500]}") from error
    if exported is None:
        raise ExportError("torch's exporter gave no ONNX program")
    model: onnx.ModelProto = exported.model_proto
    return strip(model)


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what only people and debuggers read: 80 to 93 % of the file, with this machine's paths in it."""
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    stripped.ClearField("metadata_props")
    stripped.ClearField("doc_string")
    for graph in _graphs(stripped.graph):
        for field in ("value_info", "metadata_props", "doc_string"):
            graph.ClearField(field)
        for node in graph.node:
            for field in ("metadata_props", "doc_string", "name"):
                node.ClearField(field)
        for value in (*graph.input, *graph.output):
            value.ClearField("metadata_props")
            value.ClearField("doc_string")
        for tensor in graph.initializer:
            tensor.ClearField("metadata_props")
            tensor.ClearField("doc_string")
    return stripped


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of inner graphs too."""
    for graph in _graphs(model.graph):
        yield from graph.node


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graphs(inner)


class _Traced(nn.Module):
    """`torch.export` wants a module; its arguments are the step's."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *arguments: Tensor) -> Any:
        return self.graph(*arguments)


def _max_pool_with_indices(
    x: Any, kernel_size: Any, stride: Any = (), padding: Any = (0, 0), dilation: Any = (1, 1), ceil_mode: bool = False
) -> Any:
    """`MaxPool` whose indices count within a channel's plane, as torch's do.

    ONNX counts over the whole tensor. torch's own translation runs a second pooling to find each
    plane's start; the remainder by the plane's size says the same.
    """
    from onnxscript import opset20 as op

    window = spread(kernel_size, 2)
    pads = spread(padding, 2)
    values, flat = op.MaxPool(
        x,
        kernel_shape=window,
        strides=spread(stride or window, 2),
        pads=[*pads, *pads],
        dilations=spread(dilation, 2),
        ceil_mode=int(ceil_mode),
    )
    plane = op.ReduceProd(op.Shape(x, start=2), keepdims=0)
    return values, op.Mod(flat, plane)
