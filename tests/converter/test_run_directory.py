"""Danger: a damaged, foreign or unfit run directory is converted as if it were a good one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_converter.errors import ConverterError, GateError, RunError, RunVersionError, SamplesError
from edgewise_converter.run_directory import open_run
from edgewise_converter.source import load_source
from safetensors.numpy import save


def rewrite_record(run: Path, **changes: Any) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | changes))


def replace_file(run: Path, name: str, data: bytes) -> None:
    """Change a file as its owner would: digest and all."""
    import hashlib

    (run / name).write_bytes(data)
    record = json.loads((run / "run.json").read_text())
    record["files"][name] = hashlib.sha256(data).hexdigest()
    (run / "run.json").write_text(json.dumps(record))


def test_a_whole_run_opens_and_unknown_fields_are_accepted(run_copy: Path) -> None:
    rewrite_record(run_copy, spec_version="1.9", of_the_future={"a": 1})
    run = open_run(run_copy)
    assert run.reference().x.shape == (800, 1, 8, 8)
    assert run.heldout().y.dtype == np.int64


@pytest.mark.parametrize("name", ["model.pt2", "weights.safetensors", "data/reference.safetensors"])
def test_one_flipped_bit_is_noticed(run_copy: Path, name: str) -> None:
    data = bytearray((run_copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (run_copy / name).write_bytes(data)
    with pytest.raises(RunError, match=f"{name} is damaged"):
        open_run(run_copy)


def test_a_file_changed_after_opening_is_noticed_when_it_is_read(run_copy: Path) -> None:
    run = open_run(run_copy)
    (run_copy / "data/heldout.safetensors").write_bytes(save({"x": np.zeros((1, 1, 8, 8), np.float32)}))
    with pytest.raises(RunError, match="damaged"):
        run.heldout()


@pytest.mark.parametrize("name", ["model.pt2", "data/heldout.safetensors", "run.json"])
def test_a_missing_file_is_named(run_copy: Path, name: str) -> None:
    (run_copy / name).unlink()
    with pytest.raises(RunError, match=name):
        open_run(run_copy)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"spec_version": "2.0"}, RunVersionError, "2.0"),
        ({"files": {"model.pt2": "00" * 32}}, RunError, "names no weights"),
        ({"files": {"../../etc/passwd": "00" * 32}}, RunError, "not valid"),
        ({"files": {"/etc/passwd": "00" * 32}}, RunError, "not valid"),
        ({"model": "../digits"}, RunError, "model"),
        ({"labels": ["a", "b"]}, RunError, "2 labels for 10 classes"),
        ({"input": {"name": "x", "dtype": "INT64", "shape": [-1, 8]}}, RunError, "INT64"),
        ({"input": {"name": "x", "dtype": "FP32", "shape": [4, 1, 8, 8]}}, RunError, "free batch"),
        ({"input": {"name": "x", "dtype": "FP32", "shape": [-1, -1, 8, 8]}}, RunError, "free batch"),
        ({"gate": {"passed": "yes"}}, RunError, "gate"),
    ],
)
def test_an_unfit_record_is_refused(
    run_copy: Path, changes: dict[str, Any], error: type[Exception], named: str
) -> None:
    rewrite_record(run_copy, **changes)
    with pytest.raises(error, match=named):
        open_run(run_copy)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":' * 100_000, "\xff"])
def test_a_record_that_is_not_one_is_refused(run_copy: Path, text: str) -> None:
    (run_copy / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunError):
        open_run(run_copy)


def test_a_run_that_failed_its_gate_is_not_converted(run_copy: Path) -> None:
    checks = [{"name": "accuracy", "value": 0.91, "bound": 0.97, "passed": False}]
    rewrite_record(run_copy, gate={"passed": False, "checks": checks})
    with pytest.raises(GateError, match=r"accuracy is 0\.91, bound 0\.97"):
        open_run(run_copy)


def samples_with(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any] | None = None) -> bytes:
    return save({"x": x, "y": np.zeros(len(x), np.int64) if y is None else y})


NAN = np.full((4, 1, 8, 8), np.nan, np.float32)
ZEROS = np.zeros((4, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (samples_with(NAN), "256 values that are NaN or infinite"),
        (samples_with(np.where(np.arange(256).reshape(ZEROS.shape) == 7, np.inf, ZEROS).astype(np.float32)), "1 val"),
        (samples_with(np.zeros((4, 8, 8), np.float32)), "float32 \\[N, 1, 8, 8\\] is needed"),
        (samples_with(np.zeros((4, 1, 8, 9), np.float32)), "is needed"),
        (samples_with(np.zeros((4, 1, 8, 8), np.float64)), "float64"),
        (samples_with(np.zeros((4, 1, 8, 8), np.uint8)), "uint8"),
        (samples_with(np.zeros((0, 1, 8, 8), np.float32)), "at least one"),
        (samples_with(ZEROS, np.zeros(3, np.int64)), "4 inputs and 3 labels"),
        (samples_with(ZEROS, np.array([0, 1, 2, 10], np.int64)), "class index"),
        (samples_with(ZEROS, np.array([0, 1, 2, -1], np.int64)), "class index"),
        (samples_with(ZEROS, np.zeros(4, np.float32)), "class index"),
        (save({"x": ZEROS}), "holds x; x and y are needed"),
        (b"not safetensors", "not a safetensors file"),
    ],
)
def test_unfit_calibration_and_heldout_samples_are_refused(run_copy: Path, data: bytes, named: str) -> None:
    for name, read in (("data/reference.safetensors", "reference"), ("data/heldout.safetensors", "heldout")):
        replace_file(run_copy, name, data)
        run = open_run(run_copy)
        with pytest.raises(SamplesError, match=named):
            getattr(run, read)()


def test_a_model_file_that_torch_cannot_read_is_refused(run_copy: Path) -> None:
    replace_file(run_copy, "model.pt2", b"PK\x05\x06" + bytes(18))
    with pytest.raises(RunError, match=r"model\.pt2 is not a program"):
        load_source(open_run(run_copy))


def test_a_model_whose_output_is_not_the_recorded_one_is_refused(run_copy: Path) -> None:
    rewrite_record(run_copy, output={"name": "logits", "dtype": "FP32", "shape": [-1, 11]}, labels=[])
    with pytest.raises(RunError, match=r"\[1, 10\]; the record says \[1, 11\]"):
        load_source(open_run(run_copy))


def test_a_model_that_does_not_take_the_recorded_input_is_refused(run_copy: Path) -> None:
    rewrite_record(run_copy, input={"name": "x", "dtype": "FP32", "shape": [-1, 2, 8, 8]})
    with pytest.raises(ConverterError, match="does not run on a batch of 1"):
        load_source(open_run(run_copy))
