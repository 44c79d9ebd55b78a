"""Danger: the numbers hold on this host alone, and a board's firmware answers otherwise, or takes more than it may."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_converter.c99.affine import quantize
from edgewise_converter.c99.assembly import firmware_sources
from edgewise_converter.c99.building import build
from edgewise_converter.c99.emulator import run_image
from edgewise_converter.c99.link import ProcessLink
from edgewise_converter.c99.proving import run
from edgewise_converter.c99.source import generate
from edgewise_converter.c99.toolchain import compile_program
from edgewise_profiles import catalogue
from edgewise_protocol.firmware import unpack

pytestmark = pytest.mark.slow
BOARDS = ("mps2-an386", "mps3-an547")
LINUX = (("riscv64-linux-gnu-gcc", "qemu-riscv64-static"), ("arm-linux-gnueabihf-gcc", "qemu-arm-static"))
KEYWORD = "kws_ref_model.tflite"
TINY = (KEYWORD, "vww_96_int8.tflite", "pretrainedResnet_quant.tflite", "ad01_int8.tflite", "str_ww_ref_model.tflite")


def tools(*names: str) -> None:
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


def tiny(name: str) -> bytes:
    models = os.environ.get("EDGEWISE_MODELS")
    if not models:
        pytest.skip("EDGEWISE_MODELS names no folder")
    return (Path(models) / "mlperf_tiny" / name).read_bytes()


def same_on_a_board(data: bytes, inputs: np.ndarray[Any, Any], board: str, oracle: Any) -> None:
    """Bit for bit as TFLite Micro, within every bound of the profile, and built twice to the same bytes."""
    tools("arm-none-eabi-gcc", "qemu-system-arm")
    profile = catalogue.load(board)
    built = build(data, profile, image=True)
    assert built.data == build(data, profile, image=True).data
    image, mcu = unpack(built.data).image, profile.mcu
    assert image is not None and mcu is not None
    _, answers, stats = run_image(image, mcu, [row.tobytes() for row in inputs])
    assert answers == [oracle(data, [row])[0].tobytes() for row in inputs]
    assert {figure.name for figure in built.figures} == {"flash", "memory", "arena", "stack"}
    assert all(figure.passed for figure in built.figures)
    assert 64 <= stats.stack_peak <= stats.stack_bytes == mcu.stack_kib * 1024
    assert stats.answered == len(inputs)


@pytest.fixture(scope="module")
def digits(workshop: Any) -> bytes:
    return bytes(workshop.make("tflite-int8", "raspberry-pi-4-64").data)


@pytest.mark.parametrize("board", BOARDS)
def test_the_digits_model_answers_held_out_images_on_the_board(
    board: str, digits: bytes, workshop: Any, oracle: Any
) -> None:
    tensor = build(digits, None, image=False).firmware.inputs[0]
    images = workshop.x[:100]
    same_on_a_board(digits, quantize(images, tensor).reshape(-1, *tensor.shape), board, oracle)
    profile = catalogue.load(board)
    outputs, _ = run(build(digits, profile, image=True).data, profile, {"x": images})
    (logits,) = outputs.values()
    assert np.mean(logits.argmax(1) == workshop.y[:100]) > 0.9


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("board", BOARDS)
def test_models_of_mlperf_tiny_answer_on_the_board(board: str, name: str, oracle: Any) -> None:
    data = tiny(name)
    shape = generate(data).inputs[0].shape
    inputs = np.random.default_rng(7).integers(-128, 128, (8, *shape)).astype(np.int8)
    same_on_a_board(data, inputs, board, oracle)


@pytest.mark.parametrize(("compiler", "emulator"), LINUX)
def test_the_same_code_answers_on_other_instruction_sets(
    compiler: str, emulator: str, digits: bytes, workshop: Any, oracle: Any, tmp_path: Path
) -> None:
    tools(compiler, emulator)
    tensor = build(digits, None, image=False).firmware.inputs[0]
    inputs = quantize(workshop.x[:30], tensor).reshape(-1, *tensor.shape)
    path = tmp_path / "firmware"
    path.write_bytes(compile_program(firmware_sources(generate(digits), None), compiler, ("-static",)))
    path.chmod(0o700)
    with ProcessLink([emulator, str(path)], emulator, 60.0) as link:
        answers = [link.invoke(row.tobytes()) for row in inputs]
    assert answers == [oracle(digits, [row])[0].tobytes() for row in inputs]
