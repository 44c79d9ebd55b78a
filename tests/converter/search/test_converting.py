"""Danger: a repeat that differs, a result that outlives its inputs, or a file that is left half written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_converter.cache import Cache
from edgewise_converter.errors import ConverterError, SampleError, WriteError
from edgewise_converter.hardware import read_host
from edgewise_converter.search import converting
from edgewise_converter.search.converting import convert_model
from edgewise_converter.search.request import Request, result_key
from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.manifest import Manifest


@pytest.fixture
def profile(narrow: Any) -> Any:
    return narrow("x86-64", ("onnxruntime", "float32"), ("onnxruntime", "int8"))


@pytest.fixture
def request_(even: Path, samples: Path) -> Request:
    return Request(
        model=str(even),
        version=3,
        heldout=str(samples),
        objective="size",
        accuracy_drop=5.0,
        prove="never",
        task="other",
    )


@pytest.fixture
def plain(request_: Request) -> Request:
    """One form alone, where a test is about files and not about the search."""
    return msgspec.structs.replace(request_, form="int8")


def manifest_of(path: str) -> Manifest:
    with Path(path).open("rb") as source:
        return BundleReader(source).verify()


def test_the_bundle_says_what_was_found_and_holds_no_time(request_: Request, profile: Any, tmp_path: Path) -> None:
    (outcome,) = convert_model(request_, [profile], tmp_path / "out", cache=Cache(tmp_path / "c"))
    assert outcome.passed and not outcome.cached
    manifest = manifest_of(outcome.path)
    assert (manifest.model, manifest.version, manifest.precision) == ("even", 3, "int8")
    assert manifest.requires.engine == "onnxruntime"
    assert manifest.numerics is not None and manifest.numerics.opset >= 13
    assert manifest.metrics["agreement"] == outcome.search.winning.score.agreement
    assert manifest.golden is not None and manifest.golden.samples == 16
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"even-3-x86-64.ewb", "even-3-x86-64.report.json"}
    told = json.loads((tmp_path / "out" / "even-3-x86-64.report.json").read_bytes())
    assert told["sha256"] == outcome.sha256 and told["search"]["rows"]
    assert outcome.created_at[:10].encode() not in Path(outcome.path).read_bytes()


def test_a_repeat_loads_nothing_and_gives_the_same_bytes_and_so_does_a_new_search(
    request_: Request, profile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = convert_model(request_, [profile], tmp_path / "a", cache=Cache(tmp_path / "c"))
    with monkeypatch.context() as patch:
        patch.setattr(converting._Work, "convert", lambda *_: pytest.fail("searched again"))
        (repeat,) = convert_model(request_, [profile], tmp_path / "b", cache=Cache(tmp_path / "c"))
    assert repeat.cached and repeat.search == first.search
    assert Path(repeat.path).read_bytes() == Path(first.path).read_bytes()
    (anew,) = convert_model(request_, [profile], tmp_path / "d", cache=Cache(None))
    assert anew.search.winner == first.search.winner
    assert anew.sha256 == first.sha256


def test_a_damaged_result_is_made_again(plain: Request, profile: Any, tmp_path: Path) -> None:
    (first,) = convert_model(plain, [profile], tmp_path / "a", cache=Cache(tmp_path / "c"))
    (entry,) = (p for p in (tmp_path / "c" / "results").rglob("*") if p.is_file())
    entry.write_bytes(entry.read_bytes()[:-5] + b"wrong")
    (second,) = convert_model(plain, [profile], tmp_path / "b", cache=Cache(tmp_path / "c"))
    assert not second.cached and second.sha256 == first.sha256


def test_anything_that_could_change_the_result_changes_its_key(
    request_: Request, profile: Any, samples: Path, x: Any
) -> None:
    host = read_host()

    def key(changed: Request = request_, target: Any = profile, machine: Any = host, provable: str = "") -> str:
        found = result_key(changed, target, machine, provable)
        assert found is not None
        return found

    base = key()
    assert key() == base
    others = [
        key(msgspec.structs.replace(request_, version=4)),
        key(msgspec.structs.replace(request_, objective="latency")),
        key(msgspec.structs.replace(request_, accuracy_drop=4.0)),
        key(msgspec.structs.replace(request_, labels=("a",))),
        key(target=msgspec.structs.replace(profile, title="another")),
        key(machine=msgspec.structs.replace(host, cpu="another")),
        key(provable="a sysroot"),
    ]
    np.savez(samples, x=x + 1)
    others.append(key())
    assert len({base, *others}) == len(others) + 1
    assert result_key(msgspec.structs.replace(request_, model="module:factory"), profile, host, "") is None


def test_a_missed_budget_takes_away_what_lay_there(plain: Request, narrow: Any, profile: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_model(plain, [profile], out, cache=Cache(None))
    small = narrow("x86-64", ("onnxruntime", "int8"), model_size_kib=1)
    (outcome,) = convert_model(plain, [small], out, cache=Cache(None))
    assert not outcome.passed and outcome.path == ""
    assert not list(out.glob("*"))


@pytest.mark.parametrize(
    ("array", "named"),
    [(np.zeros((20, 5), np.float32), "shape"), (np.full((20, 16), np.inf, np.float32), "NaN or infinite")],
    ids=["shape", "infinite"],
)
def test_bad_calibration_data_leaves_nothing(
    request_: Request, profile: Any, tmp_path: Path, array: Any, named: str
) -> None:
    np.savez(tmp_path / "bad.npz", x=array)
    bad = msgspec.structs.replace(request_, calibration=str(tmp_path / "bad.npz"))
    with pytest.raises(SampleError, match=named):
        convert_model(bad, [profile], tmp_path / "out", cache=Cache(tmp_path / "c"))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("written", range(8))
def test_a_disk_that_is_full_leaves_nothing_and_is_named(
    plain: Request, profile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Four files, each synchronized with its folder."""
    left, fsync = iter(range(written)), os.fsync

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WriteError, match="No space left"):
        convert_model(plain, [profile], tmp_path / "out", cache=Cache(None))
    assert not (tmp_path / "out").exists()


def test_one_form_alone_is_made_without_a_search(request_: Request, profile: Any, tmp_path: Path) -> None:
    one = msgspec.structs.replace(request_, form="int8")
    (outcome,) = convert_model(one, [profile], tmp_path / "out", cache=Cache(None))
    assert [r.candidate.precision for r in outcome.search.rows] == ["int8"]


@pytest.mark.parametrize("version", [0, 2**31])
def test_a_version_that_makes_no_sense_is_refused(
    request_: Request, profile: Any, tmp_path: Path, version: int
) -> None:
    with pytest.raises(ConverterError, match="version"):
        convert_model(
            msgspec.structs.replace(request_, version=version), [profile], tmp_path / "out", cache=Cache(None)
        )
    assert not (tmp_path / "out").exists()


def test_bounds_can_stand_in_for_the_profiles_and_reach_the_manifest(
    plain: Request, profile: Any, tmp_path: Path
) -> None:
    tight = msgspec.structs.replace(plain, max_size_kib=profile.budget.model_size_kib - 1, max_latency_ms=123.0)
    (outcome,) = convert_model(tight, [profile], tmp_path, cache=Cache(tmp_path / "cache"))
    assert outcome.passed
    budget = manifest_of(outcome.path).budget
    assert (budget.latency_ms, budget.size_bytes) == (123.0, 1024 * (profile.budget.model_size_kib - 1))
    for wrong in ({"max_latency_ms": 0.0}, {"max_latency_ms": 1e9}, {"max_size_kib": 0}, {"max_size_kib": 2**30}):
        with pytest.raises(ConverterError, match=r"bound|budget"):
            convert_model(msgspec.structs.replace(plain, **wrong), [profile], tmp_path / "no", cache=Cache(None))
    assert not (tmp_path / "no").exists()
