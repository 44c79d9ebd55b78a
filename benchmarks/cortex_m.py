"""Int8 models as firmware: bit for bit against TFLite Micro, and what they take of the board's budget.

    python benchmarks/cortex_m.py [--models DIR] [--inputs N] [--only NAME] [--cache DIR]

Every model becomes C99, is built by `arm-none-eabi-gcc`, and answers in `qemu-system-arm` as the two
boards of the catalogue, and as a program for riscv64 and armv7 under qemu-user. The digits model is
trained here and answers held-out images; the models of MLPerf Tiny, from `--models` (a folder that
holds `mlperf_tiny`; else EDGEWISE_MODELS), answer seeded noise. Emulation says nothing of latency.

Needs Debian's gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm, and for the other two
gcc-riscv64-linux-gnu gcc-arm-linux-gnueabihf qemu-user-static; `pip install tflite-micro`.

Exit status 1 where an answer differs, or the keyword or digits model misses a board's budget.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from edgewise_converter.c99.assembly import firmware_sources
from edgewise_converter.c99.budget import FirmwareBudgetError
from edgewise_converter.c99.building import build
from edgewise_converter.c99.emulator import run_image
from edgewise_converter.c99.link import ProcessLink
from edgewise_converter.c99.source import Sources, generate
from edgewise_converter.c99.toolchain import ToolchainError, compile_program
from edgewise_profiles import catalogue
from edgewise_profiles.schema import Profile
from edgewise_protocol.firmware import unpack

_BOARDS = ("mps2-an386", "mps3-an547")
_OTHERS = {
    "riscv64": ("riscv64-linux-gnu-gcc", "qemu-riscv64-static"),
    "armv7": ("arm-linux-gnueabihf-gcc", "qemu-arm-static"),
}
_FILES = {
    "keyword": "kws_ref_model.tflite",
    "wake-word": "str_ww_ref_model.tflite",
    "person": "vww_96_int8.tflite",
    "images": "pretrainedResnet_quant.tflite",
    "anomaly": "ad01_int8.tflite",
    "images-large": "pretrainedResnet_large_int8.tflite",
}
_MUST = ("digits", "keyword")
_ARENA = 4 << 20


class Case(NamedTuple):
    """A model, and inputs (N, ...) int8."""

    name: str
    data: bytes
    inputs: np.ndarray[Any, Any]


class Line(NamedTuple):
    """One row of the table."""

    cells: tuple[str, ...]
    passed: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(os.environ.get("EDGEWISE_MODELS", "")))
    parser.add_argument("--inputs", type=int, default=50, help="of each model")
    parser.add_argument("--only", action="append", help="a model's name; may be repeated")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/edgewise-benchmarks"))
    given = parser.parse_args()
    header = ("model", "on", "bit-exact", "flash KiB", "memory KiB", "arena KiB (bound)", "stack bytes", "verdict")
    print("".join(text.ljust(width) for text, width in zip(header, _WIDTHS, strict=True)))
    passed = True
    for case in _cases(given):
        wanted = expected(case)
        for line in _rows(case, wanted):
            print("".join(text.ljust(width) for text, width in zip(line.cells, _WIDTHS, strict=True)), flush=True)
            passed &= line.passed
    return 0 if passed else 1


_WIDTHS = (14, 14, 13, 19, 17, 19, 14, 10)


def expected(case: Case) -> list[bytes]:
    """TFLite Micro's answers."""
    from tflite_micro import runtime

    oracle = runtime.Interpreter.from_bytes(case.data, arena_size=_ARENA)
    answers = []
    for row in case.inputs:
        oracle.set_input(row, 0)
        oracle.invoke()
        answers.append(oracle.get_output(0).tobytes())
    return answers


def _rows(case: Case, wanted: list[bytes]) -> Iterator[Line]:
    requests = [row.tobytes() for row in case.inputs]
    sources = generate(case.data, case.name)
    for board in _BOARDS:
        yield _on_board(case, sources, catalogue.load(board), requests, wanted)
    for name, (compiler, emulator) in _OTHERS.items():
        yield _on_linux(case, sources, name, compiler, emulator, requests, wanted)


def _on_board(case: Case, sources: Sources, profile: Profile, requests: list[bytes], wanted: list[bytes]) -> Line:
    arena = f"{sources.arena_bytes / 1024:.1f} ({sources.arena_bound / 1024:.1f})"
    try:
        built = build(case.data, profile, image=True, name=case.name)
    except FirmwareBudgetError as error:
        figures = str(error).partition(": ")[2]
        return Line((case.name, profile.id, "-", "-", "-", arena, "-", f"refused: {figures}"), case.name not in _MUST)
    image, mcu = unpack(built.data).image, profile.mcu
    if image is None or mcu is None:
        raise SystemExit(f"{profile.id} has no image")
    _, answers, stats = run_image(image, mcu, requests)
    same = sum(a == b for a, b in zip(answers, wanted, strict=True))
    cells = (
        case.name,
        profile.id,
        f"{same} of {len(wanted)}",
        f"{built.firmware.flash_bytes / 1024:.1f} of {mcu.flash_kib}",
        f"{built.firmware.ram_bytes / 1024:.1f} of {mcu.ram_kib}",
        arena,
        f"{stats.stack_peak} of {stats.stack_bytes}",
        "fits" if same == len(wanted) else "DIFFERS",
    )
    return Line(cells, same == len(wanted))


def _on_linux(
    case: Case, sources: Sources, name: str, compiler: str, emulator: str, requests: list[bytes], wanted: list[bytes]
) -> Line:
    blank = ("-",) * 4
    if shutil.which(compiler) is None or shutil.which(emulator) is None:
        return Line((case.name, name, "-", *blank, f"not run: {compiler} or {emulator} is missing"), passed=True)
    try:
        program = compile_program(firmware_sources(sources, None), compiler, ("-static",))
    except ToolchainError as error:
        return Line((case.name, name, "-", *blank, str(error)), passed=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "firmware"
        path.write_bytes(program)
        path.chmod(0o700)
        with ProcessLink([emulator, str(path)], name, 120.0) as link:
            answers = [link.invoke(request) for request in requests]
    same = sum(a == b for a, b in zip(answers, wanted, strict=True))
    verdict = "runs" if same == len(wanted) else "DIFFERS"
    return Line((case.name, name, f"{same} of {len(wanted)}", *blank, verdict), same == len(wanted))


def _cases(given: argparse.Namespace) -> Iterator[Case]:
    names = given.only or ["digits", *_FILES]
    if "digits" in names:
        yield _digits(given.cache.expanduser(), given.inputs)
    for name, file in _FILES.items():
        path = given.models / "mlperf_tiny" / file
        if name not in names:
            continue
        if not path.is_file():
            print(f"{name}: {file} is not there, see --models")
            continue
        data = path.read_bytes()
        shape = generate(data, name).inputs[0].shape
        noise = np.random.default_rng(7).integers(-128, 128, (given.inputs, *shape))
        yield Case(name, data, noise.astype(np.int8))


def _digits(cache: Path, count: int) -> Case:
    """The trainer's digits model in full int8, and held-out images."""
    from conversion.training import digits_run
    from edgewise_converter.c99.affine import quantize
    from edgewise_converter.c99.building import build as describe
    from edgewise_converter.cache import Cache
    from edgewise_converter.hardware import read_host
    from edgewise_converter.search.bench import Bench
    from edgewise_converter.search.searching import chosen
    from edgewise_converter.sources.opening import open_model
    from edgewise_converter.sources.reading import Wanted

    model = open_model(str(digits_run(cache / "runs")), Wanted())
    form = chosen(model, catalogue.load("raspberry-pi-4-64"), "tflite-int8")
    made = Bench(model, Cache(None), read_host()).make(form)
    tensor = describe(made.artifact.data, None, image=False).firmware.inputs[0]
    (images,) = (array[:count] for array in model.heldout.feeds.values())
    return Case("digits", made.artifact.data, quantize(images, tensor).reshape(-1, *tensor.shape))


if __name__ == "__main__":
    sys.exit(main())
