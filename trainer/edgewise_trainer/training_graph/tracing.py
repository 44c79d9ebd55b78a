"""Write a training step down as a graph of simple operators with a free batch.

The settings, each of which something depends on: fake tensors whose batch is a symbol; `make_fx`
in mode `real`, because the tensors are fake already; the Python dispatcher, so that the table
applies below autograd; plain operators, see `backend`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from edgewise_trainer.errors import ExportError
from edgewise_trainer.training_graph.backend import plain_operators
from edgewise_trainer.training_graph.decompositions import decomposition_table
from edgewise_trainer.training_graph.step import Step

_BATCHED = 2
"""The first two arguments, x and y, have a batch; equal sizes get the same symbol."""


def trace(step: Step, x: Tensor, y: Tensor) -> GraphModule:
    """Trace `step` for samples like x (N, ...) and classes like y (N,), N >= 3.

    The graph takes and gives what the step's function does, for any batch of at least 2.

    Raises:
        ExportError: torch cannot trace it.
    """
    # Two tensors, not one twice: tracing would take them for one argument.
    lr, mu = torch.zeros((), dtype=x.dtype), torch.zeros((), dtype=x.dtype)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = [_fake(mode, i, tensor) for i, tensor in enumerate((x, y, lr, mu, *step.state))]
    try:
        with plain_operators(), mode, enable_python_dispatcher():
            traced = make_fx(
                step.function,
                decomposition_table=decomposition_table(),
                tracing_mode="real",
                _allow_non_fake_inputs=True,
            )(*fakes)
    except ExportError:
        raise
    except Exception as error:
        # Tracing runs the model's code and torch's internals: anything may come out.
        raise ExportError(f"torch cannot trace the training step: {str(error)[:1500]}") from error
    traced.graph.eliminate_dead_code()
    return GraphModule(nn.Module(), traced.graph)  # without the constants that dead code needed


def operators(graph: GraphModule) -> list[str]:
    """The graph's operators in order, e.g. `aten.mm.default`."""
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def _fake(mode: FakeTensorMode, position: int, tensor: Tensor) -> Any:
    sizes = [DimDynamic.STATIC] * tensor.dim()
    if position < _BATCHED:
        sizes[0] = DimDynamic.DYNAMIC
    return mode.from_tensor(
        tensor,
        static_shapes=False,
        source=ConstantSource(f"argument_{position}"),
        symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes, constraint_sizes=[None] * tensor.dim()),
    )
