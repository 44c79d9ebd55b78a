"""Danger: a run that was changed after it was written is converted and signed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from edgewise_trainer.durable import staged_directory, write_file
from edgewise_trainer.errors import RunError, RunExistsError, RunTamperedError
from edgewise_trainer.run import load_run
from edgewise_trainer.run_directory import read_verified

FILES = (
    "model.pt2",
    "weights.safetensors",
    "data/reference.safetensors",
    "data/heldout.safetensors",
    "training/step.onnx",
    "training/training.json",
)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_seen(run_copy: Path, name: str) -> None:
    data = bytearray((run_copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (run_copy / name).write_bytes(data)
    with pytest.raises(RunTamperedError, match=name):
        load_run(run_copy)


def test_a_missing_file_is_seen(run_copy: Path) -> None:
    (run_copy / "training/step.onnx").unlink()
    with pytest.raises(RunTamperedError, match=r"lacks 'training/step\.onnx'"):
        load_run(run_copy)


@pytest.mark.parametrize("name", ["extra.bin", "training/extra.onnx", ".hidden"])
def test_an_added_file_is_seen(run_copy: Path, name: str) -> None:
    (run_copy / name).write_bytes(b"x")
    with pytest.raises(RunTamperedError, match="does not list"):
        load_run(run_copy)


def test_a_link_is_not_a_file_of_the_run(run_copy: Path) -> None:
    (run_copy / "weights.safetensors").rename(run_copy.parent / "elsewhere")
    (run_copy / "weights.safetensors").symlink_to(run_copy.parent / "elsewhere")
    with pytest.raises(RunTamperedError, match="lacks 'weights"):
        load_run(run_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec_version": "2.0"}, "knows 1.x"),
        ({"files": {"../outside": "0" * 64}}, "not valid"),
        ({"weights_sha256": "no"}, "not valid"),
        ({"gate": {"passed": "yes", "checks": []}}, "not valid"),
    ],
)
def test_a_record_that_breaks_the_contract_is_refused(run_copy: Path, change: dict[str, Any], message: str) -> None:
    record = json.loads((run_copy / "run.json").read_text())
    (run_copy / "run.json").write_text(json.dumps(record | change))
    with pytest.raises(RunError, match=message):
        load_run(run_copy)


def test_unknown_fields_of_a_newer_minor_version_are_accepted(run_copy: Path) -> None:
    record = json.loads((run_copy / "run.json").read_text())
    (run_copy / "run.json").write_text(json.dumps(record | {"spec_version": "1.7", "later": [1]}))
    assert load_run(run_copy).spec_version == "1.7"


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        load_run(tmp_path)


def test_a_file_that_changes_after_the_check_is_still_seen(run_copy: Path) -> None:
    record = load_run(run_copy)
    (run_copy / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(RunTamperedError):
        read_verified(run_copy, record, "weights.safetensors")


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        write_file(tmp_path / "a", "not bytes")  # type: ignore[arg-type]
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged_directory(tmp_path / "run") as stage:
        (stage / "half").write_bytes(b"x")
        assert not (tmp_path / "run").exists()
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_a_directory_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(RunExistsError), staged_directory(tmp_path / "run") as stage:
        (stage / "mine").write_bytes(b"x")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "theirs").write_bytes(b"y")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["theirs"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
