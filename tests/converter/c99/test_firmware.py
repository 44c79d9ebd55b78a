"""Danger: a firmware that hangs on a damaged line, answers another request, or takes more than its board has."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from edgewise_converter.c99.assembly import firmware_sources, identity
from edgewise_converter.c99.budget import FirmwareBudgetError, figures, hold
from edgewise_converter.c99.building import build
from edgewise_converter.c99.elf import footprint
from edgewise_converter.c99.link import FirmwareRunError, ProcessLink
from edgewise_converter.c99.source import generate
from edgewise_converter.c99.toolchain import ToolchainError, compile_program
from edgewise_converter.engines.opening import open_artifact, open_named
from edgewise_converter.errors import ModelFileError, PassError
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.c99_generate import apply
from edgewise_converter.passes.compiled_catalogue import C99GenerateConfig
from edgewise_converter.requests import Requests
from edgewise_profiles import catalogue
from edgewise_protocol.firmware import unpack
from edgewise_protocol.frames import HELLO, INVOKE, REFUSALS, STATS, Decoder, Frame, encode

M4 = catalogue.load("mps2-an386")


@pytest.fixture
def softmax_file(new_graph: Any) -> bytes:
    g = new_graph()
    x = g.input((1, 6), 0.1, 3, name="x")
    y = g.op("SOFTMAX", [x], g.tensor((1, 6), 1 / 256, -128, name="y"), schema.SoftmaxOptionsT(beta=1.0), 2)
    return bytes(g.build(y))


@pytest.fixture
def program(softmax_file: bytes, tmp_path: Path) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    path = tmp_path / "firmware"
    path.write_bytes(compile_program(firmware_sources(generate(softmax_file), None)))
    path.chmod(0o700)
    return path


@pytest.fixture
def link(program: Path) -> Iterator[ProcessLink]:
    with ProcessLink([str(program)], "the firmware", 10.0) as opened:
        yield opened


def test_the_firmware_greets_answers_and_counts(link: ProcessLink, softmax_file: bytes, oracle: Any) -> None:
    hello = link.hello()
    assert (hello.inputs, hello.outputs) == ((6,), (6,))
    assert hello.identity == identity(generate(softmax_file))
    inputs = np.array([[-100, 0, 3, 50, 51, 127]], np.int8)
    assert link.invoke(inputs.tobytes()) == oracle(softmax_file, [inputs])[0].tobytes()
    assert link.stats().answered == 1
    with pytest.raises(FirmwareRunError, match="length"):
        link.invoke(b"12345")
    assert link.hello() == hello


def test_a_damaged_line_costs_one_request_and_no_more(program: Path) -> None:
    """Whatever comes before it, a whole frame after enough bytes to end a broken one is answered."""
    import subprocess

    random = np.random.default_rng(11)
    whole = encode(Frame(INVOKE, 7, bytes(6)))
    said = b""
    for _ in range(60):
        broken = bytearray(whole)
        broken[int(random.integers(len(whole)))] ^= 1 << int(random.integers(8))
        noise = random.integers(0, 256, int(random.integers(0, 9))).astype(np.uint8).tobytes()
        said += bytes(broken)[: int(random.integers(1, len(whole) + 1))] + noise
    said += bytes(64) + encode(Frame(HELLO, 200, b"")) + encode(Frame(9, 201, b"")) + encode(Frame(STATS, 202, b"x"))
    done = subprocess.run([str(program)], input=said, capture_output=True, timeout=10, check=True)
    frames = {frame.sequence: frame for frame in Decoder().feed(done.stdout)}
    assert frames[200].kind == HELLO + 128
    assert [REFUSALS[frames[n].payload[0]] for n in (201, 202)] == [REFUSALS[2], REFUSALS[3]]


def test_a_firmware_that_dies_is_an_error_and_not_a_wait() -> None:
    dead, silent = ["sh", "-c", "echo broken >&2; exit 3"], ["sleep", "30"]
    with ProcessLink(dead, "the firmware", 5.0) as link, pytest.raises(FirmwareRunError, match=r"ended|broke"):
        link.hello()
    with ProcessLink(silent, "it", 0.2) as link, pytest.raises(FirmwareRunError, match=r"not answer within 0\.2 s"):
        link.hello()


def test_the_file_holds_sources_and_says_what_they_are(softmax_file: bytes) -> None:
    built = build(softmax_file, M4, image=False)
    assert built.data == build(softmax_file, M4, image=False).data
    file = unpack(built.data)
    assert file.image is None and file.firmware.board == ""
    assert {"model.c", "model.h", "firmware.c", "startup_cortex_m.c", "firmware.ld"} <= file.members.keys()
    assert [(t.name, t.shape, t.zero_point) for t in file.firmware.inputs] == [("x", (1, 6), 3)]
    assert not any(str(Path.home()).encode() in data or b"/tmp" in data for data in file.members.values())


def materials() -> Materials:
    return Materials("digits", (), (), Requests({"x": np.zeros((2, 6), np.float32)}))


def test_the_pass_makes_what_opens_here_and_answers_in_real_numbers(softmax_file: bytes, oracle: Any) -> None:
    before = Artifact(softmax_file, "tflite", "int8")
    made = apply(materials(), before, C99GenerateConfig(board="mps2-an386", image="never"))
    assert (made.format, made.precision, made.stand_in) == ("c99", "int8", before)
    assert made.signature is not None and made.signature.inputs[0].shape == (1, 6)
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    model = open_artifact(made)
    assert (model.engine, model.batch, model.inputs[0].shape) == ("c99", 1, (-1, 6))
    x = np.random.default_rng(2).normal(0, 4, (9, 6)).astype(np.float32)
    whole = np.clip(np.trunc(x / np.float32(0.1) + np.copysign(0.5, x)) + 3, -128, 127).astype(np.int8)
    wanted = np.concatenate([oracle(softmax_file, [row[None]])[0] for row in whole])
    assert np.allclose(model.infer({"x": x})["y"], (wanted.astype(np.float32) + 128) / 256)
    raw = open_named(made.data, "c99", frozenset({"x"}))
    assert raw.inputs[0].dtype == "INT8"
    assert np.array_equal(raw.infer({"x": whole})["y"], (wanted.astype(np.float32) + 128) / 256)


def test_the_pass_refuses_boards_that_are_none(softmax_file: bytes) -> None:
    before = Artifact(softmax_file, "tflite", "int8")
    for board, words in (("mps9", "no profile"), ("x86-64", "no microcontroller")):
        with pytest.raises(PassError, match=words):
            apply(materials(), before, C99GenerateConfig(board=board))


def test_a_missing_tool_names_its_package(softmax_file: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="apt install gcc-arm-none-eabi"):
        build(softmax_file, M4, image=True)


def test_a_budget_is_held_to_the_byte() -> None:
    mcu = M4.mcu
    assert mcu is not None
    fits = {"flash": mcu.flash_kib * 1024, "ram": mcu.ram_kib * 1024, "arena": 1000, "stack": mcu.stack_kib * 1024}
    hold("mps2-an386", figures(mcu, **fits))
    for name, word in (("flash", "flash"), ("ram", "memory"), ("stack", "stack")):
        with pytest.raises(FirmwareBudgetError, match=rf"mps2-an386: {word} "):
            hold("mps2-an386", figures(mcu, **{**fits, name: fits[name] + 1}))
    with pytest.raises(FirmwareBudgetError, match="arena"):
        hold("mps2-an386", figures(mcu, **{**fits, "arena": mcu.ram_kib * 1024}))


def test_what_is_no_image_or_no_firmware_file_is_refused(softmax_file: bytes) -> None:
    for data in (b"", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(60), b"\x7fELF\x02\x01" + bytes(90)):
        with pytest.raises(PassError):
            footprint(data)
    whole = build(softmax_file, M4, image=False).data
    with pytest.raises(ModelFileError):
        open_named(whole[:-30], "c99")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../evil.c", "x")
        archive.writestr("firmware.json", "{}")
    with pytest.raises(ModelFileError, match="strange name"):
        open_named(out.getvalue(), "c99")
