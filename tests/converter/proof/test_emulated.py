"""Danger: a bundle that answers here, and otherwise on the board's processor.

The real thing: a Debian system for aarch64, the engines' own wheels, qemu-user with the board's processor.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from edgewise_converter.cache import Cache
from edgewise_converter.errors import ProofToolsError, SysrootError
from edgewise_converter.proof import prove, sysroot, tools
from edgewise_converter.proof.result import ProofResult
from edgewise_converter.search.converting import convert_model
from edgewise_converter.search.request import Request
from edgewise_profiles import catalogue

bundles: Any = sys.modules["proof_bundles"]
PI4, PI5 = catalogue.load("raspberry-pi-4-64"), catalogue.load("raspberry-pi-5")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sysroot of a board that has dot products; skipped where it cannot be built."""
    found = sysroot.find(PI5)
    if found is not None:
        return found.folder.parent
    place = tmp_path_factory.mktemp("sysroots")
    try:
        tools.check_builder(sysroot.recipe_here(PI5))
        tools.debian_sources("bookworm")
        sysroot.ensure(PI5, place)
    except ProofToolsError as error:
        pytest.skip(str(error))
    except SysrootError as error:
        if "resolv" in str(error) or "connect" in str(error).lower():
            pytest.skip(f"no network: {error}")
        raise
    return place


@pytest.fixture(scope="module")
def made(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of the digits by form."""
    forms = ("onnx-float32", "onnx-int8", "tflite-int8", "tflite-float32", "onnx-float16")
    found = {}
    for form in forms:
        folder = tmp_path_factory.mktemp(form)
        request = Request(model=str(digits_run), version=1, form=form, prove="never")
        (report,) = convert_model(request, [PI5], folder, cache=Cache(None))
        found[form] = Path(report.path)
    return found


@pytest.mark.parametrize("form", ["onnx-float32", "onnx-int8", "onnx-float16", "tflite-int8", "tflite-float32"])
def test_golden_answers_agree_on_both_processors(form: str, made: dict[str, Path], home: Path) -> None:
    what = prove.read(made[form])
    here, there = prove.on_host(what), prove.prove_on(what, PI5, place="emulated", home=home)
    assert here.passed, here.reason
    assert there.passed, f"{there.reason}\n{there.log}"
    assert (there.proof.machine, there.proof.cpu, there.proof.emulated) == ("aarch64", "cortex-a76", True)
    assert "asimddp" in there.proof.cpu_features
    assert there.proof.engine_version == here.proof.engine_version
    # The engines found the board's processor, and chose their kernels for it.
    assert "cpuinfo" not in there.log


@pytest.mark.parametrize("form", ["onnx-int8", "tflite-float32"])
def test_a_broken_bundle_fails_on_the_target(form: str, made: dict[str, Path], home: Path, tmp_path: Path) -> None:
    what = prove.read(bundles.broken(made[form], tmp_path / "broken.ewb"))
    found = prove.prove_on(what, PI5, place="emulated", home=home)
    assert not found.passed
    assert found.outputs[0].max_abs_error > found.outputs[0].atol


def test_what_runs_there_is_shut_in(made: dict[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no rights, none of the host's files and processes, no more memory than allowed."""
    code = """
import errno, os, socket, sys
from pathlib import Path
found = []
try: socket.create_connection(("127.0.0.1", 9), 1)
except OSError as error: found.append(error.errno in (errno.ENETUNREACH, errno.ECONNREFUSED, errno.EADDRNOTAVAIL))
found.append([n for _, n in socket.if_nameindex()] == ["lo"])
found.append(os.getuid() != 0 and os.getpid() < 10)
try: Path("/opt/edgewise/x").write_text("x"); found.append(False)
except OSError: found.append(True)
found.append(not Path("/root").exists() or not os.access("/root", os.W_OK))
try: bytearray(8 << 30); found.append(False)
except MemoryError: found.append(True)
sys.exit(f"found {found}")
"""
    monkeypatch.setattr(prove.running, "script", lambda: code)
    found: ProofResult = prove.prove_on(prove.read(made["onnx-int8"]), PI5, place="emulated", home=home)
    assert not found.passed
    assert "found [True, True, True, True, True, True]" in found.reason


def test_an_engine_that_is_lost_in_time_is_ended(
    made: dict[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove.running, "EMULATED_S", 3.0)
    monkeypatch.setattr(prove.running, "script", lambda: "while True: pass")
    found = prove.prove_on(prove.read(made["onnx-int8"]), PI5, place="emulated", home=home)
    assert not found.passed
    assert "took more than 3 s" in found.reason
