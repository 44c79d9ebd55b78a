"""Danger: a run that cannot be repeated, is half written, or leaves its mark on the process."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from edgewise_trainer.config import GateSection, TrainConfig
from edgewise_trainer.errors import RunExistsError, TrainingError
from edgewise_trainer.progress import Progress
from edgewise_trainer.run import load_run, train
from safetensors.numpy import load_file

SmallConfig = Callable[..., TrainConfig]


def test_the_example_passes_its_gate(whole_run: Any) -> None:
    record = whole_run.record
    assert record.gate.passed
    assert record.metrics["accuracy"] >= 0.97
    assert 0.40 <= record.metrics["federation_accuracy"] <= 0.75, "the devices' domain must be hard, not hopeless"
    assert record.labels == tuple("0123456789")
    assert record.input.shape == (-1, 1, 8, 8)
    assert load_run(whole_run.directory) == record


def test_progress_tells_every_epoch(whole_run: Any) -> None:
    epochs = [p for p in whole_run.reports if p.stage == "train"]
    assert [p.epoch for p in epochs] == list(range(1, whole_run.config.train.epochs + 1))
    assert epochs[-1].eta_s == 0
    assert epochs[-1].loss is not None
    assert epochs[0].loss is not None
    assert epochs[-1].loss < epochs[0].loss
    stages = list(dict.fromkeys(p.stage for p in whole_run.reports))
    assert stages == ["data", "train", "evaluate", "export", "training-graph", "write"]


def test_data_files_hold_what_the_record_says(whole_run: Any) -> None:
    heldout = load_file(whole_run.directory / "data/heldout.safetensors")
    reference = load_file(whole_run.directory / "data/reference.safetensors")
    assert len(heldout["y"]) == whole_run.record.data.sizes["test"]
    assert len(reference["y"]) == min(2000, whole_run.record.data.sizes["train"])
    seen = {row.tobytes() for row in reference["x"]}
    assert not any(row.tobytes() in seen for row in heldout["x"])


def test_exported_program_needs_no_code_of_ours_and_scores_the_same(whole_run: Any) -> None:
    script = (
        "import sys, torch\n"
        "from safetensors.numpy import load_file\n"
        "model = torch.export.load(sys.argv[1] + '/model.pt2').module()\n"
        "data = load_file(sys.argv[1] + '/data/heldout.safetensors')\n"
        "x, y = torch.from_numpy(data['x']), torch.from_numpy(data['y'])\n"
        "assert model(x[:1]).shape == (1, 10)\n"
        "assert not any(name.startswith('edgewise') for name in sys.modules)\n"
        "print(float((model(x).argmax(1) == y).double().mean()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(whole_run.directory)], capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout) == pytest.approx(whole_run.record.metrics["accuracy"])


def test_no_file_names_this_machine(whole_run: Any) -> None:
    root = str(Path(__file__).parents[2]).encode()
    home = str(whole_run.directory.parent).encode()
    for name in ("run.json", *whole_run.record.files):
        data = (whole_run.directory / name).read_bytes()
        assert root not in data, name
        assert home not in data, name
        assert not re.search(rb"[\w/]+/site-packages/", data), name


def test_equal_configurations_give_equal_runs(small_config: SmallConfig, tmp_path: Path) -> None:
    torch.manual_seed(123)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first = train(small_config(), tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(456)
    second = train(small_config(), tmp_path / "b")
    assert second == first, "ids, weights, exported program and every other file"
    other = train(small_config(seed=6), tmp_path / "c")
    assert other.weights_sha256 != first.weights_sha256
    assert other.id != first.id


def test_a_failed_gate_is_written_as_failed(small_config: SmallConfig, tmp_path: Path) -> None:
    config = msgspec.structs.replace(small_config(), gate=GateSection(min_accuracy=1.0))
    record = train(config, tmp_path / "run")
    assert not record.gate.passed
    assert not load_run(tmp_path / "run").gate.passed


def test_an_existing_run_is_never_overwritten(whole_run: Any, small_config: SmallConfig) -> None:
    with pytest.raises(RunExistsError):
        train(small_config(), whole_run.directory)
    assert load_run(whole_run.directory) == whole_run.record


def test_a_broken_off_run_leaves_nothing(small_config: SmallConfig, tmp_path: Path) -> None:
    class StopHereError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage == "write":
            raise StopHereError

    with pytest.raises(StopHereError):
        train(small_config(), tmp_path / "run", stop)
    assert not list(tmp_path.iterdir())


def test_a_diverging_loss_is_an_error_that_names_the_key(small_config: SmallConfig, tmp_path: Path) -> None:
    config = small_config(lr=10.0, momentum=0.99, epochs=3, schedule="constant")
    wild = msgspec.structs.replace(
        config, model=msgspec.structs.replace(config.model, factory="wild_model_of_a_test:make")
    )
    wild = msgspec.structs.replace(wild, folder=str(tmp_path), model=msgspec.structs.replace(wild.model, options={}))
    (tmp_path / "wild_model_of_a_test.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(6)), nn.Linear(64, 10))\n"
    )
    with pytest.raises(TrainingError, match=r"not finite in epoch \d; lower \[train\] lr"):
        train(wild, tmp_path / "run")


def test_a_model_with_too_few_outputs_is_refused(small_config: SmallConfig, tmp_path: Path) -> None:
    config = small_config()
    wrong = msgspec.structs.replace(
        config, model=msgspec.structs.replace(config.model, options={"width": 4, "classes": 12})
    )
    with pytest.raises(TrainingError, match="for 10 labels"):
        train(wrong, tmp_path / "run")


def test_plots_are_pictures(whole_run: Any) -> None:
    pytest.importorskip("matplotlib")
    for name in ("plots/learning_curve.png", "plots/confusion.png"):
        assert name in whole_run.record.files
        assert (whole_run.directory / name).read_bytes().startswith(b"\x89PNG")


def test_record_holds_the_confusion_matrix(whole_run: Any) -> None:
    confusion = np.array(whole_run.record.evaluation.confusion)
    assert confusion.sum() == whole_run.record.data.sizes["test"]
    assert np.trace(confusion) / confusion.sum() == pytest.approx(whole_run.record.metrics["accuracy"])
