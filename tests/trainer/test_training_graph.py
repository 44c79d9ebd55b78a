"""Danger: a device trains with a step that is not the one that torch computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edgewise_trainer.errors import ExportError, GraphGateError
from edgewise_trainer.models import build
from edgewise_trainer.training_graph import TrainingStep, export_training_step, gates
from edgewise_trainer.training_graph import decompositions as table_module
from edgewise_trainer.training_graph.export import STEP_FILE
from edgewise_trainer.training_graph.reference import Reference
from edgewise_trainer.training_graph.step import Step, build_step
from torch import Tensor, nn


class Recurrent(nn.Module):
    """(N, 1, 4, 4) read as two rows of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows, _ = self.cells(x.reshape(-1, 2, 8))
        return self.head(rows[:, -1])  # type: ignore[no-any-return]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def convolutional() -> nn.Module:
    """Strides, groups, a batch norm, both kinds of pooling and SiLU: each has a gradient of ours."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 8, 2, stride=2, groups=2),
        nn.SiLU(),
        nn.AvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": convolutional, "gru": Recurrent}


def samples(count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 4, 4, generator=generator), torch.arange(count) % 3


def made(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None
    return model


@pytest.fixture(scope="module")
def exported() -> dict[str, TrainingStep]:
    return {name: export_training_step(made(name), *samples(), weight_decay=1e-3) for name in MODELS}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_gate_was_held_and_its_figure_is_real(exported: dict[str, TrainingStep], name: str) -> None:
    checks = {c.name: c for c in exported[name].checks}
    assert set(checks) == {
        "form_faults",
        "one_step_batch_2",
        "one_step_batch_7",
        "one_step_batch_16",
        "same_operators",
        "50_steps_float64",
    }
    assert all(c.passed for c in checks.values())
    assert 0 < checks["one_step_batch_16"].value < 1e-5, "an error of exactly nothing would mean nothing was compared"
    assert 0 < checks["50_steps_float64"].value < 1e-9


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_file_is_plain_and_holds_no_weights(exported: dict[str, TrainingStep], name: str) -> None:
    step = exported[name]
    model = onnx.load_from_string(step.model)
    assert [o.domain for o in model.opset_import] == [""]
    assert not model.graph.value_info
    assert not any(node.metadata_props or node.doc_string or node.name for node in model.graph.node)
    largest = max((int(np.prod(t.dims)) for t in model.graph.initializer), default=0)
    assert largest <= 16, "only shapes and scalars"
    assert [v.name for v in model.graph.input][:4] == ["x", "y", "lr", "mu"]
    assert step.spec.step_file == STEP_FILE
    names = {f"p.{p.name}" for p in step.spec.params} | {f"b.{b.name}" for b in step.spec.buffers}
    assert names <= {v.name for v in model.graph.input}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_onnxruntime_alone_learns_with_it(exported: dict[str, TrainingStep], name: str) -> None:
    session = onnxruntime.InferenceSession(exported[name].model, providers=["CPUExecutionProvider"])
    outputs = [o.name for o in session.get_outputs()]
    x, y = (t.numpy() for t in samples())
    y = (x.mean((1, 2, 3)) > 0.5).astype(np.int64)
    state = {f"p.{n}": p.detach().numpy() for n, p in made(name).named_parameters()}
    state |= {f"m.{n[2:]}": np.zeros_like(p) for n, p in state.items()}
    state |= {f"g.{n[2:]}": p for n, p in state.items() if n.startswith("p.")}
    state |= {f"b.{n}": b.numpy() for n, b in made(name).named_buffers()}
    scalars = {"lr": np.array(0.1, np.float32), "mu": np.array(0.0, np.float32)}
    losses = []
    for _ in range(60):
        found = dict(zip(outputs, session.run(None, {"x": x, "y": y, **scalars, **state}), strict=True))
        losses.append(float(found["loss"]))
        state |= {n.removeprefix("new_"): v for n, v in found.items() if n.startswith("new_")}
    assert losses[-1] < 0.6 * losses[0]


def test_exports_repeat_byte_for_byte(exported: dict[str, TrainingStep]) -> None:
    assert export_training_step(made("mlp"), *samples(), weight_decay=1e-3).model == exported["mlp"].model


def test_without_momentum_there_are_no_momenta_and_the_model_is_left_as_it_was() -> None:
    model = made("mlp").eval()
    before = {n: p.clone() for n, p in model.named_parameters()}
    step = export_training_step(model, *samples(), momentum=0.0)
    inputs = [v.name for v in onnx.load_from_string(step.model).graph.input]
    assert not any(n.startswith("m.") for n in inputs)
    assert not step.spec.momentum
    assert not model.training
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


# ---- deliberately broken exports ----


def break_gradient(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[..., Any]) -> None:
    original = table_module.decomposition_table

    def broken() -> table_module.Table:
        table = original()
        operator = next(op for op in table if str(op) == name)
        right = table[operator]
        table[operator] = lambda *a, **k: wrong(right, *a, **k)
        return table

    monkeypatch.setattr("edgewise_trainer.training_graph.tracing.decomposition_table", broken)


def test_a_gradient_wrong_by_a_thousandth_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(right: Any, *arguments: Any) -> Any:
        gx, gw, gb = right(*arguments)
        return gx, gw * 1.001, gb

    break_gradient(monkeypatch, "aten.convolution_backward.default", wrong)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(GraphGateError, match="differs from torch"):
        export_training_step(model, *samples())


def test_a_gradient_left_whole_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    original = table_module.decomposition_table

    def without() -> table_module.Table:
        return {op: f for op, f in original().items() if "max_pool2d" not in str(op)}

    monkeypatch.setattr("edgewise_trainer.training_graph.tracing.decomposition_table", without)
    with pytest.raises(GraphGateError, match=r"keeps aten.max_pool2d_with_indices_backward.default \(1x\)"):
        export_training_step(made("cnn"), *samples())


def gate_parts(name: str) -> tuple[Step, tuple[Reference, Reference]]:
    single = made(name).train()
    double = made(name).double().train()
    witnesses = tuple(Reference(m, momentum=0.9, weight_decay=1e-3) for m in (single, double))
    return build_step(single, momentum=0.9, weight_decay=1e-3), (witnesses[0], witnesses[1])


def draw(size: int, seed: int) -> tuple[Tensor, Tensor]:
    x, y = samples()
    chosen = torch.from_numpy(np.random.default_rng(seed).choice(len(y), size))
    return x[chosen], y[chosen]


def test_the_one_step_gate_accepts_the_true_file(exported: dict[str, TrainingStep]) -> None:
    step, witnesses = gate_parts("mlp")
    assert gates.check_one_step(step, witnesses, exported["mlp"].model, 7, draw, 0).passed


@pytest.mark.parametrize("operator", ["Sub", "Mul", "Relu"])
def test_a_file_with_one_operator_changed_is_refused(exported: dict[str, TrainingStep], operator: str) -> None:
    model = onnx.load_from_string(exported["mlp"].model)
    changed = next(node for node in reversed(model.graph.node) if node.op_type == operator)
    changed.op_type = {"Sub": "Add", "Mul": "Add", "Relu": "Abs"}[operator]
    step, witnesses = gate_parts("mlp")
    with pytest.raises(GraphGateError, match="differs from torch"):
        gates.check_one_step(step, witnesses, model.SerializeToString(), 7, draw, 0)


def test_outputs_in_another_order_are_refused(exported: dict[str, TrainingStep]) -> None:
    model = onnx.load_from_string(exported["mlp"].model)
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend([outputs[1], outputs[0], *outputs[2:]])
    with pytest.raises(GraphGateError, match="outputs are not those promised"):
        gates.check_form(gate_parts("mlp")[0], model)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (onnx.helper.make_node("Gelu", ["x"], ["z"], domain="com.microsoft"), "of the domain 'com.microsoft'"),
        (onnx.helper.make_node("RandomNormalLike", ["x"], ["z"]), "RandomNormalLike is random"),
        (onnx.helper.make_node("Identity", ["x"], ["z"], doc_string="/home/me"), "carries metadata"),
        (onnx.helper.make_node("Identity", ["absent"], ["z"]), "checker refuses"),
    ],
)
def test_a_foreign_node_is_refused(exported: dict[str, TrainingStep], node: onnx.NodeProto, message: str) -> None:
    model = onnx.load_from_string(exported["mlp"].model)
    model.graph.node.append(node)
    with pytest.raises(GraphGateError, match=message):
        gates.check_form(gate_parts("mlp")[0], model)


def test_a_fixed_batch_is_refused(exported: dict[str, TrainingStep]) -> None:
    model = onnx.load_from_string(exported["mlp"].model)
    for value in model.graph.input:
        if value.name in ("x", "y"):
            value.type.tensor_type.shape.dim[0].dim_value = 8
    with pytest.raises(GraphGateError, match="batch is not free"):
        gates.check_form(gate_parts("mlp")[0], model)


def test_a_broken_file_is_refused() -> None:
    step, witnesses = gate_parts("mlp")
    with pytest.raises(GraphGateError, match="onnxruntime refuses"):
        gates.check_one_step(step, witnesses, b"not onnx", 7, draw, 0)


def frozen() -> nn.Module:
    model = mlp()
    model[1].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 3)), "'1' is dropout"),
        (frozen, "frozen parameters"),
        (lambda: nn.Flatten(), "no parameters"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(1, 1, 2), nn.Flatten(), nn.Linear(25, 3)), "transposed convolution"),
    ],
)
def test_what_is_not_supported_is_said(model: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_training_step(model(), *samples())


def test_examples_of_the_wrong_kind_are_refused() -> None:
    x, y = samples()
    with pytest.raises(ExportError, match="the example must be"):
        export_training_step(made("mlp"), x.double(), y)
    with pytest.raises(ExportError, match="the example must be"):
        export_training_step(made("mlp"), x, y.float())


def test_the_built_in_model_was_proven(whole_run: Any) -> None:
    model = build("digits_cnn", {}, seed=1)
    spec = (whole_run.directory / "training/training.json").read_bytes()
    assert all(f'"{name}"'.encode() in spec for name, _ in model.named_parameters())
