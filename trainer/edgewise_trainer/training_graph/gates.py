"""The gates of a training-step export. Nothing that fails one is ever returned to a caller.

1. Form: no operator of a gradient, a foreign domain or a random source is left; no functions,
   no external data, nothing that only debuggers read; inputs and outputs are those promised, with
   a free batch; onnx's checker agrees.
2. One step in float32, run by onnxruntime, against torch eager with torch's own optimizer, at
   three batch sizes, with momenta and a proximal term that matter. An activation that lies
   within rounding of a kink (ReLU at 0) may fall to either side and change the gradient at once:
   torch in float32 then differs from torch in float64 as well, by 2e-5 to 9e-4 in deep networks
   [measured]. So the graph may agree with either witness, and a small difference is drawn again,
   a few times; a large one never is.
3. Fifty steps of the same graph in float64 against torch eager: float32 rounding, which deep
   batch-norm networks amplify, cannot hide a small error here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from edgewise_trainer.errors import GraphGateError
from edgewise_trainer.gate import Check
from edgewise_trainer.training_graph.onnx_form import RANDOM_OPERATORS, STANDARD_DOMAINS, nodes
from edgewise_trainer.training_graph.reference import Reference
from edgewise_trainer.training_graph.step import Step
from edgewise_trainer.training_graph.tracing import operators

ONE_STEP_TOLERANCE: Final = 1e-5
"""Largest error of any output after one float32 step, relative to 1 + |value|. Measured: 6e-7."""
KINK: Final = 5e-3
"""Above this a difference is never put down to a kink."""
DRAWS: Final = 6
MANY_STEPS: Final = 50
MANY_STEPS_TOLERANCE: Final = 1e-9
"""The same after fifty float64 steps. Measured: 6e-15."""
RANDOM_TRACED: Final = ("aten.rand", "aten.bernoulli", "aten.native_dropout", "aten.multinomial", "aten.normal")
Draw = Callable[[int, int], tuple[Tensor, Tensor]]
LR: Final = 0.05
MU: Final = 0.1


def check_traced(graph: GraphModule) -> None:
    """Gate 1 on the traced graph, before it is translated.

    Raises:
        GraphGateError: naming the gradient and random operators that are left.
    """
    left = Counter(name for name in operators(graph) if "_backward" in name or name.startswith(RANDOM_TRACED))
    if left:
        shown = ", ".join(f"{name} ({count}x)" for name, count in left.items())
        raise GraphGateError(f"the training step is refused: the traced graph keeps {shown[:1500]}")


def check_form(step: Step, model: onnx.ModelProto) -> Check:
    """Gate 1 on the file; its value is the number of faults.

    Raises:
        GraphGateError: naming every fault.
    """
    faults = []
    for node in nodes(model):
        if node.domain not in STANDARD_DOMAINS:
            faults.append(f"{node.op_type} is of the domain {node.domain!r}")
        elif node.op_type in RANDOM_OPERATORS:
            faults.append(f"{node.op_type} is random")
        elif node.metadata_props or node.doc_string:
            faults.append(f"{node.op_type} carries metadata")
    faults += [
        f"the file imports the domain {o.domain!r}" for o in model.opset_import if o.domain not in STANDARD_DOMAINS
    ]
    if model.functions:
        faults.append(f"{len(model.functions)} functions are not inlined")
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        faults.append("data are stored outside of the file")
    faults += _naming_faults("inputs", step.inputs, [v.name for v in model.graph.input])
    faults += _naming_faults("outputs", step.outputs, [v.name for v in model.graph.output])
    batches = [v.type.tensor_type.shape.dim[0].dim_param for v in model.graph.input if v.name in ("x", "y")]
    if len(batches) != 2 or not batches[0] or batches[0] != batches[1]:
        faults.append("the batch is not free")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        faults.append(f"onnx's checker refuses it: {error}")
    if faults:
        shown = "; ".join(dict.fromkeys(faults))
        raise GraphGateError(f"the exported training step is refused: {shown[:1500]}")
    return Check(name="form_faults", value=0.0, bound=0.0, passed=True)


def check_one_step(
    step: Step, witnesses: tuple[Reference, Reference], data: bytes, size: int, draw: Draw, seed: int
) -> Check:
    """Gate 2 at one batch size.

    Args:
        step: the float32 step.
        witnesses: torch in float32 and in float64.
        data: the ONNX file.
        size: samples in a batch.
        draw: (size, seed) -> x float32 (size, ...), y int64 (size,).
        seed: of the first draw.

    Raises:
        GraphGateError: an output is off by more than the tolerance, or onnxruntime refuses the graph.
    """
    run = _session(data)
    name = f"one_step_batch_{size}"
    worst, error = "", 0.0
    for attempt in range(DRAWS):
        x, y = draw(size, seed + attempt)
        state = _stirred(step, seed + attempt)
        found = dict(zip(step.outputs, run(_feeds(step, x, y, state)), strict=True))
        single = witnesses[0].steps(state, [(x, y)], lr=LR, mu=MU)
        double = witnesses[1].steps([_widened(t) for t in state], [(x.double(), y)], lr=LR, mu=MU)
        worst, error = min((largest_error(found, expected) for expected in (single, double)), key=lambda e: e[1])
        if not ONE_STEP_TOLERANCE < error <= KINK:
            break
    return _judge(name, worst, error, ONE_STEP_TOLERANCE)


def check_many_steps(
    step: Step, reference: Reference, graph: GraphModule, batches: Sequence[tuple[Tensor, Tensor]]
) -> Check:
    """Gate 3, over `batches` (x float64, y int64); step, reference and graph are the float64 ones.

    Raises:
        GraphGateError: an output is off by more than the tolerance.
    """
    state = list(step.state)
    anchors = len(step.outputs) - 2
    expected = reference.steps(state, batches, lr=LR, mu=MU)
    lr, mu = (torch.tensor(v, dtype=torch.float64) for v in (LR, MU))
    outputs: tuple[Tensor, ...] = ()
    with torch.no_grad():
        for x, y in batches:
            outputs = graph(x, y, lr, mu, *state)
            state[:anchors] = outputs[2:]
    found = {name: tensor.numpy() for name, tensor in zip(step.outputs, outputs, strict=True)}
    return _judge(f"{len(batches)}_steps_float64", *largest_error(found, expected), MANY_STEPS_TOLERANCE)


def check_same_operators(single: GraphModule, double: GraphModule) -> Check:
    """Tie gate 3's graph to the exported one: the same operators in the same order, but for casts."""
    a, b = (
        [name for name in operators(graph) if "_to_copy" not in name and "prims.convert" not in name]
        for graph in (single, double)
    )
    if a != b:
        raise GraphGateError("the float32 and float64 traces of the training step differ; the gate would prove nothing")
    return Check(name="same_operators", value=float(len(a)), bound=float(len(b)), passed=True)


def largest_error(found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> tuple[str, float]:
    """The output that is farthest off, and by how much, relative to 1 + |value|; infinite if shapes differ."""
    worst, error = "", 0.0
    for name, wanted in expected.items():
        given = found[name]
        if given.shape != wanted.shape:
            return name, float("inf")
        off = float((np.abs(given.astype(np.float64) - wanted) / (1.0 + np.abs(wanted))).max(initial=0.0))
        if not off <= error:
            worst, error = name, off if np.isfinite(off) else float("inf")
    return worst, error


def _judge(name: str, worst: str, error: float, tolerance: float) -> Check:
    if not error <= tolerance:
        raise GraphGateError(
            f"the exported training step is refused: {name}: {worst!r} differs from torch by {error:.3g}, "
            f"at most {tolerance:.3g} is allowed"
        )
    return Check(name=name, value=error, bound=tolerance, passed=True)


def _naming_faults(what: str, promised: Sequence[str], found: Sequence[str]) -> list[str]:
    if list(promised) == list(found):
        return []
    return [f"its {what} are not those promised (first difference: {sorted(set(promised) ^ set(found))[:1]})"]


def _stirred(step: Step, seed: int) -> list[Tensor]:
    """The start state with momenta that are not zero, and parameters that are not the global ones."""
    generator = torch.Generator().manual_seed(seed)
    stirred = []
    for name, tensor in zip(step.inputs[4:], step.state, strict=True):
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        stirred.append(tensor + 0.05 * noise if name.startswith(("m.", "g.")) else tensor.clone())
    return stirred


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _feeds(step: Step, x: Tensor, y: Tensor, state: Sequence[Tensor]) -> dict[str, NDArray[Any]]:
    scalars = [np.array(v, dtype=np.float32) for v in (LR, MU)]
    return dict(zip(step.inputs, [x.numpy(), y.numpy(), *scalars, *(t.numpy() for t in state)], strict=True))


def _session(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime's exceptions have no public common class.
        raise GraphGateError(f"onnxruntime refuses the exported training step: {str(error)[:1000]}") from error

    def run(feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            outputs: list[NDArray[Any]] = session.run(None, feeds)
        except Exception as error:
            raise GraphGateError(f"onnxruntime cannot run the exported step: {str(error)[:1000]}") from error
        return outputs

    return run
