"""Danger: an aggregate is promoted that is no better, ruins the base domain, or is not what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from edgewise_protocol.manifest import TrainingSpec
from edgewise_trainer.api import promote_weights
from edgewise_trainer.config import DataSection
from edgewise_trainer.datasets import split_by_label
from edgewise_trainer.domains import load_domains
from edgewise_trainer.errors import ConfigError, DataError, RunError, RunTamperedError, WeightsError
from edgewise_trainer.run import from_weights, load_run
from edgewise_trainer.weights import Weights, decode, encode
from safetensors.numpy import load_file

ROUNDS, EPOCHS, BATCH, LR = 4, 2, 32, 0.005


def run_rounds(directory: Path, config: Any) -> Weights:
    """Federated averaging of three clients as devices do it: onnxruntime and the run's own files alone."""
    spec = msgspec.json.decode((directory / "training/training.json").read_bytes(), type=TrainingSpec)
    session = onnxruntime.InferenceSession(directory / "training" / spec.step_file, providers=["CPUExecutionProvider"])
    outputs = [o.name for o in session.get_outputs()]
    domain = load_domains(config)[1]
    assert domain is not None
    clients = split_by_label(domain, 3, seed=7)
    weights = load_file(directory / spec.initial_file)
    scalars = {"lr": np.array(LR, np.float32), "mu": np.array(0.0, np.float32)}
    for number in range(ROUNDS):
        total = {name: np.zeros_like(array, np.float64) for name, array in weights.items()}
        for index, client in enumerate(clients):
            random = np.random.default_rng([number, index])
            anchors = {f"g.{n[2:]}": p for n, p in weights.items() if n.startswith("p.")}
            state = weights | {f"m.{n[2:]}": np.zeros_like(p) for n, p in anchors.items()}
            for _ in range(EPOCHS):
                order = random.permutation(len(client.y))
                for chosen in np.split(order[: len(order) // BATCH * BATCH], len(order) // BATCH):
                    feeds = {"x": client.x[chosen], "y": client.y[chosen], **scalars, **state, **anchors}
                    found = dict(zip(outputs, session.run(None, feeds), strict=True))
                    state = {n.removeprefix("new_"): v for n, v in found.items() if n.startswith("new_")}
            for name in total:
                total[name] += state[name].astype(np.float64) * len(client.y) / len(domain.y_train)
        weights = {name: array.astype(np.float32) for name, array in total.items()}
    return weights


@pytest.fixture(scope="module")
def aggregate(whole_run: Any) -> Weights:
    return run_rounds(whole_run.directory, whole_run.config)


@pytest.fixture(scope="module")
def promoted(whole_run: Any, aggregate: Weights, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("promoted") / "run"
    weights_file = directory.parent / "weights.safetensors"
    weights_file.write_bytes(encode(aggregate))
    config = Path(whole_run.config.folder) / "digits.toml"
    return directory, promote_weights(config, weights_file, whole_run.directory, directory)


def test_the_aggregate_passes_the_gate_by_a_clear_paired_gain(promoted: Any, whole_run: Any) -> None:
    record = promoted[1]
    assert record.gate.passed, record.gate
    assert record.parent == whole_run.record.id
    assert record.metrics["parent_accuracy"] == pytest.approx(whole_run.record.metrics["federation_accuracy"])
    assert record.metrics["accuracy"] - record.metrics["parent_accuracy"] == pytest.approx(
        record.metrics["paired_gain"]
    )
    assert record.metrics["paired_gain"] > 0.2
    assert record.metrics["paired_mcnemar_p"] < 1e-6
    assert record.metrics["parent_base_accuracy"] - record.metrics["base_accuracy"] <= 0.06
    counts = [record.metrics[f"paired_{n}"] for n in ("both_right", "only_old", "only_new", "both_wrong")]
    assert sum(counts) == 450


def test_its_directory_is_a_run_of_the_devices_domain(promoted: Any, whole_run: Any, aggregate: Weights) -> None:
    directory, record = promoted
    assert load_run(directory) == record
    base, domain = load_domains(whole_run.config)
    assert domain is not None
    assert np.array_equal(load_file(directory / "data/heldout.safetensors")["x"], domain.x_test)
    reference = {row.tobytes() for row in load_file(directory / "data/reference.safetensors")["x"]}
    shares = [len(reference & {row.tobytes() for row in d.x_train}) for d in (base, domain)]
    assert min(shares) > 900
    step = "training/step.onnx"
    assert record.files[step] == whole_run.record.files[step]
    stored = decode((directory / "weights.safetensors").read_bytes())
    assert all(np.array_equal(stored[n], aggregate[n]) for n in aggregate)


def test_unchanged_weights_gain_nothing_and_fail(whole_run: Any, tmp_path: Path) -> None:
    same = load_file(whole_run.directory / "weights.safetensors")
    record = from_weights(whole_run.config, same, whole_run.directory, tmp_path / "run")
    assert not record.gate.passed
    assert [c.name for c in record.gate.checks if not c.passed] == ["gain", "mcnemar_p"]
    assert record.metrics["paired_mcnemar_p"] == 1.0


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_weights_that_do_not_fit_are_refused(whole_run: Any, aggregate: Weights, tmp_path: Path, damage: str) -> None:
    weights = dict(aggregate)
    if damage == "missing":
        del weights["p.head.bias"]
    elif damage == "shape":
        weights["p.head.bias"] = weights["p.head.bias"][:9]
    else:
        weights["p.head.bias"] = np.full_like(weights["p.head.bias"], np.nan)
    with pytest.raises(WeightsError, match=r"p\.head\.bias"):
        from_weights(whole_run.config, weights, whole_run.directory, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tampered_parent_is_refused(whole_run: Any, run_copy: Path, aggregate: Weights, tmp_path: Path) -> None:
    other = encode({n: a + 1 for n, a in decode((run_copy / "weights.safetensors").read_bytes()).items()})
    (run_copy / "weights.safetensors").write_bytes(other)
    with pytest.raises(RunTamperedError, match=r"weights\.safetensors"):
        from_weights(whole_run.config, aggregate, run_copy, tmp_path / "run")


def test_other_data_than_the_parents_are_refused(whole_run: Any, aggregate: Weights, tmp_path: Path) -> None:
    def with_options(**options: Any) -> Any:
        federation = msgspec.structs.replace(
            whole_run.config.federation, data=DataSection(options={"seed": 7, "test_fraction": 0.25, **options})
        )
        return msgspec.structs.replace(whole_run.config, federation=federation)

    with pytest.raises(DataError, match="devices' domain is not that of the parent"):
        from_weights(with_options(rotate_degrees=[1.0, 2.0]), aggregate, whole_run.directory, tmp_path / "run")
    leaking = with_options(seed=8, rotate_degrees=[15.0, 35.0])
    with pytest.raises(DataError, match="also trained on"):
        from_weights(leaking, aggregate, whole_run.directory, tmp_path / "run")
    other_base = msgspec.structs.replace(whole_run.config, data=DataSection(options={"seed": 7, "test_fraction": 0.2}))
    with pytest.raises(DataError):
        from_weights(other_base, aggregate, whole_run.directory, tmp_path / "run")


def test_a_configuration_of_another_model_or_without_a_domain_is_refused(
    whole_run: Any, aggregate: Weights, tmp_path: Path
) -> None:
    config = whole_run.config
    renamed = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, name="other"))
    with pytest.raises(RunError, match="of the model 'digits'"):
        from_weights(renamed, aggregate, whole_run.directory, tmp_path / "run")
    bare = msgspec.structs.replace(config, federation=type(config.federation)())
    with pytest.raises(ConfigError, match=r"\[federation.data\]"):
        from_weights(bare, aggregate, whole_run.directory, tmp_path / "run")
