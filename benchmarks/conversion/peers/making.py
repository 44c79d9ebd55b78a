"""Peers' files of a case: as their quick starts say, each in its own environment; a failure is a row."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from conversion.case import Case, save
from conversion.contender import Contender
from conversion.environments import ENVIRONMENTS
from conversion.fetching import Cache, FetchError, say
from conversion.harness import opened, requests

_SECONDS: Final = 900
_NO_OP: Final = 0.97
"""A file of at least this share of the source's size was not quantized."""
_HERE: Final = Path(__file__).parent


class Peer(NamedTuple):
    """A way to quantize."""

    label: str
    format: str
    environment: str
    command: tuple[str, ...]
    """Arguments of the environment's Python; `{model}`, `{feeds}`, `{out}` and `{folder}` are filled in."""


_OLIVE_DYNAMIC: Final = (
    *("-m", "olive", "quantize", "-m", "{model}", "-o", "{out}", "--algorithm", "rtn", "--precision", "int8"),
    *("--implementation", "ort", "--disable_telemetry"),
)
PEERS: Final = (
    Peer("ORT static", "onnx", "onnxruntime", ("onnxruntime_quantize.py", "static", "{model}", "{feeds}", "{out}")),
    Peer(
        "ORT static, pre-processed",
        "onnx",
        "onnxruntime",
        ("onnxruntime_quantize.py", "prepared", "{model}", "{feeds}", "{out}"),
    ),
    Peer("ORT dynamic", "onnx", "onnxruntime", ("onnxruntime_quantize.py", "dynamic", "{model}", "{feeds}", "{out}")),
    Peer("Olive dynamic", "onnx", "olive", _OLIVE_DYNAMIC),
    Peer("Olive static", "onnx", "olive", ("olive_quantize.py", "{model}", "{feeds}", "{out}", "{folder}")),
    Peer(
        "AEQ dynamic_wi8_afp32",
        "tflite",
        "ai-edge-quantizer",
        ("ai_edge_quantize.py", "dynamic", "{model}", "{feeds}", "{out}"),
    ),
    Peer(
        "AEQ static_wi8_ai8",
        "tflite",
        "ai-edge-quantizer",
        ("ai_edge_quantize.py", "static", "{model}", "{feeds}", "{out}"),
    ),
)


def sources(case: Case) -> list[Contender]:
    """The float files."""
    many = len(case.forms) > 1
    return [
        Contender("float", f"float source{f' ({form})' if many else ''}", form, path.read_bytes())
        for form, path in case.forms.items()
    ]


def peers(case: Case, cache: Cache) -> Iterator[Contender]:
    """What each peer makes of the case's float files."""
    for source in sources(case):
        with tempfile.TemporaryDirectory() as folder:
            feeds, model = Path(folder) / "feeds.npz", Path(folder) / f"model.{source.format}"
            model.write_bytes(source.data)
            loaded = opened(source)
            asked = requests(case, case.calibration, loaded)[0].requests
            rows = list(asked.each())
            save(feeds, {name: np.stack([row[name] for row in rows]) for name in asked.feeds})
            for peer in PEERS:
                if peer.format == source.format:
                    say(f"{case.name}: {peer.label} ...")
                    yield _made(peer, source, model, feeds, cache)


def _made(peer: Peer, source: Contender, model: Path, feeds: Path, cache: Cache) -> Contender:
    empty = Contender("peer", peer.label, source.format)
    try:
        python = cache.environment(peer.environment, ENVIRONMENTS[peer.environment])
    except FetchError as error:
        return _failed(empty, f"does not install: {error}")
    data, failure = _run(peer, python, model, feeds)
    note = ""
    if source.format == "tflite" and (not data or len(data) > _NO_OP * len(source.data)):
        signed = model.with_name("signed.tflite")
        signed.write_bytes(_signed(source.data))
        note = f"given a signature first: without one it {'changes nothing' if data else 'fails'}"
        data, failure = _run(peer, python, signed, feeds)
    if not data:
        return _failed(empty, failure)
    if data == source.data:
        return Contender("peer", peer.label, source.format, data, detail="changed nothing")
    return Contender("peer", peer.label, source.format, data, detail=note)


def _run(peer: Peer, python: Path, model: Path, feeds: Path) -> tuple[bytes, str]:
    """The file, or why there is none."""
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        out = Path(folder) / f"out{model.suffix}"
        filled = [part.format(model=model, feeds=feeds, out=out, folder=folder) for part in peer.command]
        if filled[0].endswith(".py"):
            filled[0] = str(_HERE / filled[0])
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                [str(python), *filled],
                check=False,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                cwd=folder,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return b"", f"took more than {_SECONDS} s"
        found = sorted(out.rglob("*.onnx")) if out.is_dir() else [out]
        if found and found[0].is_file():
            return found[0].read_bytes(), ""
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(" ")]
        wrong = [line for line in lines if any(word in line for word in ("Error", "Exception", "Invalid", "fail"))]
        return b"", (wrong or lines or [f"ended with {done.returncode} and no file"])[-1][:200]


def _failed(empty: Contender, failure: str) -> Contender:
    return Contender(empty.who, empty.label, empty.format, failure=failure)


def _signed(data: bytes) -> bytes:
    """The TFLite file with a signature, which ai-edge-quantizer's calibration asks for."""
    from edgewise_converter.tflite_file import reading, signatures, writing

    model = reading.read(data)
    signatures.sign(model)
    return writing.write(model, names=True)
