"""Danger: a script takes a bundle that differs, or was not run, for proven: exit status 0 must mean that it was."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from edgewise_cli.__main__ import run
from edgewise_protocol.manifest import Requirements

_spec = importlib.util.spec_from_file_location(
    "proof_bundles", Path(__file__).resolve().parents[1] / "converter" / "proof" / "bundles.py"
)
assert _spec is not None and _spec.loader is not None
bundles: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bundles)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def bundle(path: Path, scale: float = 2.0, **changes: Any) -> Path:
    files = bundles.affine_files(scale)
    written: Path = bundles.write(path, bundles.manifest_of(files, **changes), files)
    return written


def answered(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_good_and_a_broken_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = bundle(tmp_path / "good.ewb"), bundle(tmp_path / "bad.ewb", 2.5)
    assert run(["prove", str(good), "--on", "host", "--json"]) == 0
    document = answered(capsys)
    assert document["passed"]
    (one,) = document["runs"]
    assert (one["bundle"], one["on"], one["passed"]) == ("good.ewb", "host", True)
    assert not any("seconds" in key or "latency" in key for key in one)

    assert run(["prove", str(good), str(bad), "--on", "host", "--json"]) == 1
    error = answered(capsys)["error"]
    assert error["code"] == "proof-failed"
    assert "bad.ewb on host" in error["message"]
    assert "good.ewb" not in error["message"]
    assert [r["passed"] for r in error["runs"]] == [True, False]


def test_people_see_a_table_without_latencies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prove", str(bundle(tmp_path / "bad.ewb", 2.5)), "--on", "host"]) == 1
    out = capsys.readouterr()
    assert "bad.ewb" in out.out
    assert "DIFFERS" in out.out
    assert "golden answers differ" in out.err
    assert " ms" not in out.out


def test_a_target_that_was_not_run_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = bundle(tmp_path / "good.ewb", profile="raspberry-pi-4-64")
    assert run(["prove", str(good), "--json"]) == 1
    error = answered(capsys)["error"]
    assert error["code"] == "proof-missing"
    assert "edgewise prove --prepare raspberry-pi-4-64" in error["message"]
    assert {r["on"]: r["why_not"].partition(":")[0] for r in error["runs"]} == {
        "host": "",
        "raspberry-pi-4-64": "proof-not-prepared",
    }
    # Without a sysroot, all is the host.
    assert run(["prove", str(good), "--on", "all", "--json"]) == 0
    assert [r["on"] for r in answered(capsys)["runs"]] == ["host"]


def test_machine_code_is_run_on_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgewise_converter.errors import NoEmulationError
    from edgewise_converter.proof import prove

    def ran(*_: object) -> None:
        raise NoEmulationError("it ran")

    monkeypatch.setattr(prove, "host_engine", lambda engine: engine)
    monkeypatch.setattr(prove.running, "run_native", ran)
    # By the engine: a bundle may call its format what it likes.
    evil = bundle(tmp_path / "evil.ewb", requires=Requirements(engine="iree"))
    assert run(["prove", str(evil), "--on", "host", "--on", "x86-64", "--json"]) == 1
    error = answered(capsys)["error"]
    assert (error["code"], "--run-machine-code" in error["message"]) == ("proof-missing", True)
    assert "it ran" not in str(error)
    assert run(["prove", str(evil), "--on", "host", "--run-machine-code", "--json"]) == 1
    assert "it ran" in answered(capsys)["error"]["message"]


def test_sysroots_are_listed_and_pruned(empty_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prove", "--list", "--prune", "--json"]) == 0
    assert answered(capsys) == {"removed": [], "sysroots": []}


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        ([], 2, "usage"),
        (["--prepare", "no-such-board"], 6, "not-found"),
        (["--prepare", "x86-64-vnni"], 1, "proof-no-emulation"),
        (["absent.ewb"], 1, "write"),
        (["--on", "no-such-board", "{good}"], 6, "not-found"),
        (["{damaged}"], 9, "bundle-damaged"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], status: int, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = bundle(tmp_path / "good.ewb")
    damaged = tmp_path / "damaged.ewb"
    damaged.write_bytes(good.read_bytes()[:-40])
    given = [a.format(good=good, damaged=damaged) for a in arguments]
    assert run(["prove", *given, "--json"]) == status
    assert answered(capsys)["error"]["code"] == code
