"""Danger: a bundle that differs from run to run, misses its budget, or does not do what its manifest says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from edgewise_converter.bundling import Contents
from edgewise_converter.cache import Cache
from edgewise_converter.errors import ConverterError, EngineError, RunError, WriteError
from edgewise_converter.golden import decode, encode
from edgewise_converter.search.converting import convert_model
from edgewise_converter.search.outcome import Outcome
from edgewise_converter.search.request import Request
from edgewise_converter.writing import write_proven
from edgewise_profiles import catalogue
from edgewise_profiles.errors import NoTargetError
from edgewise_profiles.schema import Budget, Profile
from edgewise_protocol.bundle import BundleReader, file_entry
from edgewise_protocol.facts import DeviceFacts, fits
from edgewise_protocol.features import sketch_window
from edgewise_protocol.manifest import Manifest
from edgewise_protocol.sketches import decode_baseline, load_kll
from safetensors.numpy import load

NAMES = tuple(profile.id for profile in catalogue.load_all() if profile.targets[0].format in ("onnx", "tflite"))


def convert(run: Path, profiles: list[Profile], out: Path, version: int = 1, form: str = "default") -> list[Outcome]:
    return convert_model(Request(model=str(run), version=version, form=form), profiles, out, cache=Cache(None))


def with_budget(profile: Profile, **changes: Any) -> Profile:
    budget = msgspec.structs.asdict(profile.budget) | changes
    return msgspec.structs.replace(profile, budget=Budget(**budget))


def opened(path: str) -> tuple[Manifest, dict[str, bytes]]:
    with Path(path).open("rb") as source:
        reader = BundleReader(source)
        manifest = reader.verify()
        return manifest, {entry.name: reader.read(entry.name) for entry in manifest.files}


def run_afresh(manifest: Manifest, model: bytes, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Outputs by the engine itself, not by the converter's own runner."""
    if manifest.format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {"x": x[i : i + 1]})[0] for i in range(len(x))])
    interpreter = Interpreter(model_content=model, num_threads=2)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    (scale, zero), (out_scale, out_zero) = taken["quantization"], given["quantization"]
    found = []
    for sample in x:
        interpreter.set_tensor(
            taken["index"], np.clip(np.round(sample[None] / scale) + zero, -128, 127).astype(np.int8)
        )
        interpreter.invoke()
        found.append((interpreter.get_tensor(given["index"]).astype(np.float32) - out_zero) * out_scale)
    return np.concatenate(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_opens_verifies_and_says_what_its_profile_says(converted: Any, name: str) -> None:
    report, profile = converted[0][name], catalogue.load(name)
    manifest, files = opened(report.path)
    target = profile.targets[0]
    assert (manifest.model, manifest.version, manifest.profile) == ("digits", 3, name)
    assert (manifest.format, manifest.precision, manifest.requires.engine) == (
        target.format,
        target.precision,
        target.engine,
    )
    assert manifest.requires.compatible == profile.all_compatible
    assert manifest.requires.cpu_features == profile.cpu.features
    assert manifest.inputs[0].shape == (-1, 1, 8, 8)
    assert manifest.inputs[0].dtype == manifest.outputs[0].dtype == "FP32"
    assert manifest.budget.size_bytes == profile.budget.model_size_kib * 1024
    assert manifest.lineage["profile_sha256"] == profile.sha256
    assert set(files) == {f"model.{target.format}", "golden.safetensors", "baseline.json", "provenance.json"}
    assert report.model_size_bytes == len(files[manifest.model_file])
    assert Path(report.path).stat().st_size == report.size_bytes
    assert manifest.metrics["accuracy"] == report.document()["accuracy"] > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_golden_outputs_are_found_again_by_the_engine_itself(converted: Any, name: str) -> None:
    manifest, files = opened(converted[0][name].path)
    rule = manifest.golden
    assert rule is not None
    arrays = load(files[rule.file])
    x, wanted = arrays["input.x"], arrays["output.logits"]
    assert len(x) == len(wanted) == rule.samples == 16
    assert len(set(wanted.argmax(1))) == 10
    found = run_afresh(manifest, files[manifest.model_file], x)
    outside = np.abs(found - wanted) > rule.atol + rule.rtol * np.abs(wanted)
    if rule.top1:
        assert (found.argmax(1) == wanted.argmax(1)).mean() >= rule.top1
        assert outside.mean() <= rule.outliers
    else:
        assert not outside.any()
    assert rule.atol < 0.05 * np.abs(wanted).max(), "a tolerance this wide would pass another model"


@pytest.mark.parametrize("name", NAMES)
def test_the_baseline_is_of_the_converted_model_and_carries_both_kinds_of_sketch(
    converted: Any, workshop: Any, name: str
) -> None:
    manifest, files = opened(converted[0][name].path)
    baseline = decode_baseline(files["baseline.json"])
    assert baseline.samples == 800
    outputs = run_afresh(manifest, files[manifest.model_file], workshop.reference)
    counts = np.bincount(outputs.argmax(1), minlength=10)
    assert baseline.features["output.class"].counts == tuple(counts)
    means = workshop.reference.reshape(800, -1).mean(1).astype(np.float64)
    window = sketch_window({"input.mean": means}, baseline)
    assert window["input.mean"].counts == baseline.features["input.mean"].counts
    kll = load_kll(baseline.features["input.mean"].kll)
    worst = max(abs(kll.get_rank(float(v), True) - float((means <= v).mean())) for v in np.unique(means))
    assert worst < 0.005, "a quarter of a per cent, twice for the ties; KLL itself promises 1.33"


@pytest.mark.parametrize("name", NAMES)
def test_provenance_is_a_statement_about_the_model_file_and_holds_no_time(converted: Any, name: str) -> None:
    report = converted[0][name]
    manifest, files = opened(report.path)
    statement = json.loads(files["provenance.json"])
    (entry,) = (e for e in manifest.files if e.name == manifest.model_file)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": entry.name, "digest": {"sha256": entry.sha256}}]
    predicate = statement["predicate"]
    assert predicate["run"] == "digits-test-run"
    assert predicate["data_fingerprint"] == "ab" * 32
    assert predicate["profile_sha256"] == catalogue.load(name).sha256
    assert predicate["measured"]["accuracy"] == report.document()["accuracy"]
    assert report.created_at[:10].encode() not in files["provenance.json"]


def test_equal_runs_give_equal_bytes_in_another_process_folder_and_hash_seed(
    converted: Any, run_copy: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from edgewise_converter.cache import Cache\n"
        "from edgewise_converter.search.converting import convert_model\n"
        "from edgewise_converter.search.request import Request\n"
        "from edgewise_profiles import catalogue\n"
        "request = Request(model=sys.argv[1], version=3, form='default')\n"
        "boards = [catalogue.load(name) for name in sys.argv[3].split(',')]\n"
        "for made in convert_model(request, boards, Path(sys.argv[2]), cache=Cache(None)):\n"
        "    print(made.profile, made.sha256)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(run_copy), str(tmp_path / "elsewhere"), ",".join(NAMES)],
        capture_output=True,
        text=True,
        check=True,
        timeout=150,
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "31337"},
    )
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found == {name: converted[0][name].sha256 for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_this_machine_is_in_a_bundle(converted: Any, digits_run: Path, name: str) -> None:
    data = Path(converted[0][name].path).read_bytes()
    for trace in (str(digits_run), sys.prefix, os.getcwd(), "site-packages", "/tmp/"):
        assert trace.encode() not in data, trace


def test_the_report_beside_the_bundle_holds_what_the_bundle_must_not(converted: Any) -> None:
    for report in converted[0].values():
        beside = Path(report.path.removesuffix(".ewb") + ".report.json")
        told = json.loads(beside.read_bytes())
        assert told["sha256"] == report.sha256
        assert told["path"] == Path(report.path).name
        assert told["latency_ms"] == report.search.winning.latency_ms > 0
        assert told["accuracy"] == report.document()["accuracy"]
        assert told["search"]["host"]["machine"] == os.uname().machine
        assert told["passed"] is True


def test_profiles_share_what_is_the_same_for_them(converted: Any) -> None:
    reports = converted[0]
    four, zero = (opened(reports[n].path)[1] for n in ("raspberry-pi-4-64", "raspberry-pi-zero-2-w"))
    assert four["model.tflite"] == zero["model.tflite"]


def test_progress_rises_from_nothing_to_all(converted: Any) -> None:
    shares = [share for _, share in converted[1]]
    assert shares == sorted(shares)
    assert shares[0] < 0.01
    assert converted[1][-1] == ("done", 1.0)
    assert all(0 <= share <= 1 for share in shares)


def test_latency_binds_only_on_the_profiles_own_hardware(converted: Any) -> None:
    assert not any(converted[0][n].search.latency_binding for n in NAMES if n.startswith("raspberry"))
    if os.uname().machine == "x86_64":
        assert converted[0]["x86-64"].search.latency_binding


def test_the_bundle_fits_its_board_and_no_other(converted: Any) -> None:
    for name in NAMES:
        manifest, _ = opened(converted[0][name].path)
        for other in NAMES:
            board = catalogue.load(other)
            facts = DeviceFacts(
                machine=board.machine,
                compatible=board.all_compatible,
                cpu_features=board.cpu.features + board.cpu.any_of[1:],
                memory_mib=board.memory_mib,
                engines={"onnxruntime": "1.32.0", "litert": "2.3.0", "tflite-runtime": "2.14.0"},
            )
            assert bool(fits(facts, manifest)) == (name != other), (name, other)
    lacking = msgspec.structs.replace(facts, cpu_features=catalogue.load("x86-64-vnni").cpu.features)
    assert any("none of avx512_vnni, avx_vnni" in reason for reason in fits(lacking, manifest))


@pytest.mark.parametrize(
    ("changes", "short", "named"),
    [
        ({"model_size_kib": 2}, "size", "KiB; the profile allows 2"),
        ({"latency_ms": 1e-4}, "latency", "ms; the profile allows 0.0001"),
    ],
)
def test_a_missed_budget_is_refused_by_how_much_and_leaves_no_file(
    digits_run: Path, tmp_path: Path, changes: dict[str, Any], short: str, named: str
) -> None:
    out = tmp_path / "out"
    good = catalogue.load("x86-64")
    (before,) = convert(digits_run, [good], out)
    assert Path(before.path).exists()
    (outcome,) = convert(digits_run, [with_budget(good, **changes)], out)
    assert list(out.iterdir()) == [], "neither a new file, nor the old one under the same name, nor a temporary one"
    assert not outcome.passed and outcome.path == ""
    (row,) = outcome.search.rows
    assert (row.verdict, row.short) == ("rejected", short)
    assert named in row.reason


def test_one_refusal_does_not_take_the_others_with_it(digits_run: Path, tmp_path: Path) -> None:
    small = with_budget(catalogue.load("x86-64"), model_size_kib=1)
    found = convert(digits_run, [small, catalogue.load("raspberry-pi-5")], tmp_path, 2, "onnx-float32")
    assert [(o.profile, o.passed) for o in found] == [("x86-64", False), ("raspberry-pi-5", True)]
    assert {p.name.split(".")[0] for p in tmp_path.iterdir()} == {"digits-2-raspberry-pi-5"}


def test_a_damaged_run_leaves_no_file(run_copy: Path, tmp_path: Path) -> None:
    (run_copy / "model.pt2").write_bytes(b"")
    out = tmp_path / "out"
    with pytest.raises(RunError, match="damaged"):
        convert(run_copy, [catalogue.load("x86-64")], out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("names", "version", "form", "error"),
    [
        (["raspberry-pi-zero-2-w"], 1, "float16", NoTargetError),
        (["x86-64"], 0, "default", ConverterError),
        (["x86-64"], 2**31, "default", ConverterError),
        ([], 1, "default", ConverterError),
        (["x86-64", "x86-64"], 1, "default", ConverterError),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_any_work(
    tmp_path: Path, names: list[str], version: int, form: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        convert(tmp_path / "no run", [catalogue.load(name) for name in names], tmp_path / "out", version, form)
    assert not (tmp_path / "out").exists()


def contents_of(outcome: Outcome) -> Contents:
    manifest, files = opened(outcome.path)
    return Contents(manifest, files)


def test_a_bundle_that_does_not_repeat_its_golden_outputs_is_not_written(converted: Any, tmp_path: Path) -> None:
    contents = contents_of(converted[0]["x86-64"])
    assert contents.manifest.golden is not None
    name = contents.manifest.golden.file
    inputs, outputs = decode(contents.files[name])
    files = contents.files | {name: encode(inputs, {"logits": outputs["logits"] + 1})}
    entries = tuple(file_entry(file, data) for file, data in sorted(files.items()))
    wrong = Contents(msgspec.structs.replace(contents.manifest, files=entries), files)
    with pytest.raises(EngineError, match="golden"):
        write_proven(tmp_path / "bad.ewb", wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_would_not_open_is_not_written(converted: Any, tmp_path: Path) -> None:
    contents = contents_of(converted[0]["x86-64"])
    huge = msgspec.structs.replace(contents.manifest, labels=tuple(f"label {i:0100}" for i in range(9_000)))
    with pytest.raises(WriteError, match=r"x\.ewb would not be a bundle that opens"):
        write_proven(tmp_path / "x.ewb", contents._replace(manifest=huge))
    assert list(tmp_path.iterdir()) == []
