"""Danger: an image that is not the bundle's passes for proven, or a bundle that does not fit itself ends us."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_converter.c99 import emulator, proving
from edgewise_converter.c99.link import FirmwareRunError, ProcessLink
from edgewise_converter.errors import ModelFileError
from edgewise_converter.proof import c99_board, prove
from edgewise_profiles import catalogue
from edgewise_protocol.firmware import IMAGE_FILE, Firmware, FirmwareTensor, pack
from edgewise_protocol.manifest import Golden, Manifest, Requirements, TensorSpec

BOARD = catalogue.load("mps2-an386")
OURS, OTHER = "ab" * 32, "cd" * 32
X = np.array([[1, 2, 3, 4]], np.float32)
FIRMWARE = """
import struct, sys, zlib
identity, inputs, outputs, answer = sys.argv[1], *map(int, sys.argv[2:5])
while head := sys.stdin.buffer.read(8):
    kind, sequence, length = struct.unpack_from("<BBI", head, 2)
    given = sys.stdin.buffer.read(length + 4)[:length]
    if kind == 1:
        said = struct.pack("<HBBI32sII", 1, 1, 1, 4, bytes.fromhex(identity), inputs, outputs)
    else:
        said = given[:answer].ljust(answer, b"x") if kind == 2 else struct.pack("<IIII", 1, 2, 3, 4)
    body = struct.pack("<BBI", kind | 128, sequence, len(said)) + said
    sys.stdout.buffer.write(b"EW" + body + struct.pack("<I", zlib.crc32(body)))
    sys.stdout.buffer.flush()
"""
"""Answers what it was given: identity, bytes of input and output, and bytes that it answers come as arguments."""


def tensor(name: str, size: int = 4) -> FirmwareTensor:
    return FirmwareTensor(name=name, shape=(1, size), scale=1.0, zero_point=0)


def firmware(**changes: Any) -> Firmware:
    said: dict[str, Any] = {
        "spec_version": "1.0",
        "identity": OURS,
        "inputs": (tensor("x"),),
        "outputs": (tensor("y"),),
        "arena_bytes": 4,
        "board": BOARD.id,
        "image": IMAGE_FILE,
        **changes,
    }
    return Firmware(**said)


def said_by(identity: str = OURS, inputs: int = 4, outputs: int = 4, answer: int = 4) -> list[str]:
    return [sys.executable, "-I", "-c", FIRMWARE, identity, *map(str, (inputs, outputs, answer))]


def on_board(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """Have a program stand in for the emulator, whatever the image."""
    monkeypatch.setattr(emulator, "command", lambda *_: command)
    for module in (emulator, proving):
        monkeypatch.setattr(module, "has_emulator", lambda: True)


def bundle(said: Firmware, inputs: int = 1, outputs: int = 1, samples: int = 1) -> prove.Golden:
    def specs(stem: str, count: int) -> tuple[TensorSpec, ...]:
        names = [stem, *(f"{stem}{i}" for i in range(1, count))]
        return tuple(TensorSpec(name=name, dtype="FP32", shape=(-1, 4)) for name in names)

    manifest = Manifest(
        spec_version="1.0",
        kind="inference",
        model="m",
        version=1,
        profile=BOARD.id,
        requires=Requirements(engine="c99"),
        files=(),
        inputs=specs("x", inputs),
        outputs=specs("y", outputs),
        format="c99",
        model_file="model.c99",
        golden=Golden(file="g", samples=samples, atol=0.1, rtol=0.0),
    )
    rows = np.repeat(X, samples, 0)
    return prove.Golden(
        manifest,
        pack(said, {IMAGE_FILE: b"\x7fELF"}),
        {spec.name: rows[: samples - i] for i, spec in enumerate(manifest.inputs)},
        {spec.name: rows for spec in manifest.outputs},
    )


def test_the_bundles_own_image_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    on_board(monkeypatch, said_by())
    found = prove.prove_on(bundle(firmware()), BOARD)
    assert found.passed, found.reason


@pytest.mark.parametrize(
    ("command", "changes", "says"),
    [
        (said_by(OTHER), {}, "names the model cdcdcdcdcdcd, not abababababab"),
        (said_by(), {"board": "mps3-an547"}, "is for 'mps3-an547', not for mps2-an386"),
        (said_by(inputs=5), {}, "inputs have"),
        (said_by(outputs=5), {}, "outputs have"),
        (said_by(answer=3), {}, "answered 3 bytes"),
        (said_by(answer=5), {}, "answered 5 bytes"),
        ([sys.executable, "-c", FIRMWARE.replace("<HBBI32sII", "<HBBI31sII"), OURS, "4", "4", "4"], {}, "greeting"),
    ],
)
def test_an_image_that_is_not_the_files_is_not_proven(
    command: list[str], changes: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_board(monkeypatch, command)
    found = prove.prove_on(bundle(firmware(**changes)), BOARD)
    assert not found.passed
    assert says in found.reason


@pytest.mark.parametrize(
    ("changes", "counts", "says"),
    [
        ({"inputs": (tensor("x"), tensor("q"))}, {}, "has 2 inputs; the bundle names 1"),
        ({}, {"inputs": 2}, "has 1 inputs; the bundle names 2"),
        ({}, {"outputs": 2}, "has 1 outputs; the manifest names 2"),
        ({"inputs": (tensor("p"), tensor("q"))}, {"inputs": 2, "samples": 2}, r"hold \[2, 1\] requests"),
        ({"inputs": (tensor("p"), tensor("q"))}, {"inputs": 2}, r"hold \[1, 0\] requests"),
    ],
)
def test_a_bundle_that_does_not_fit_itself_is_told(
    changes: dict[str, Any], counts: dict[str, int], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_board(monkeypatch, said_by())
    with pytest.raises(ModelFileError, match=says):
        c99_board.answer(bundle(firmware(**changes), **counts), BOARD)


def test_a_frame_longer_than_any_answer_is_not_waited_for() -> None:
    known = msgspec.structs.replace(firmware(), outputs=(tensor("y", 4),))
    command = said_by(answer=100_000)
    with ProcessLink(command, "it", 10.0, known) as link:
        assert link.hello().identity == OURS
        link._timeout_s = 0.5
        with pytest.raises(FirmwareRunError, match=r"not answer within 0\.5 s"):
            link.invoke(bytes(4))
