"""Danger: passes hold on graphs built for them and break on those that people bring.

`EDGEWISE_WHEELS` names a folder with the unpacked wheels `magika` and `silero-vad`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from edgewise_converter.errors import PassError, UnchangedError
from edgewise_converter.importing.model_file import check_onnx
from edgewise_converter.requests import Requests
from passes_onnx_graphs import Case, answers

WHEELS = Path(os.environ.get("EDGEWISE_WHEELS", "no-such-folder"))
MAGIKA = "magika/magika/models/standard_v3_3/model.onnx"
SILERO = "silero-vad/silero_vad/data/{}.onnx"
SILEROS = (
    "silero_vad",
    "silero_vad_16k_op15",
    "silero_vad_half",
    "silero_vad_openvino_16k",
    "silero_vad_op18_ifless",
    "silero_vad_16k_sequence",
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WHEELS.is_dir(), reason="EDGEWISE_WHEELS names no folder of unpacked wheels"),
]
INT8 = ("onnx_int8", {"reduce_range": False})


def magika() -> Case:
    """Texts and random bytes as its two ends of 1,024."""
    rng = np.random.default_rng(4)
    text = np.frombuffer("".join(p.read_text() for p in sorted(Path(__file__).parent.glob("*.py"))).encode(), np.uint8)
    starts = rng.integers(0, len(text) - 2048, 48)
    rows = [text[s : s + 2048] for s in starts] + [rng.integers(0, 256, 2048) for _ in range(16)]
    model = onnx.load(WHEELS / MAGIKA)
    return Case(model, Requests({"bytes": np.stack(rows).astype(np.int32)}))


def silero(name: str) -> Case:
    """A stream of 64 blocks with the float model's own states."""
    path = WHEELS / SILERO.format(name)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    t = np.arange(64 * 512 + 64) / 16000
    wave = sum(np.sin(2 * np.pi * k * 130 * t + k) / k for k in range(1, 20)) * (np.sin(2 * np.pi * 1.5 * t) > 0) * 0.1
    wave = (wave + np.random.default_rng(5).normal(size=t.size) * 0.003).astype(np.float32)
    states = {
        i.name: np.zeros([d if isinstance(d, int) and d else 1 for d in i.shape], np.float32)
        for i in session.get_inputs()
        if i.name in ("state", "h", "c")
    }
    rows: dict[str, list[Any]] = {i.name: [] for i in session.get_inputs()}
    for block in range(64):
        feeds: dict[str, Any] = {"input": wave[block * 512 : block * 512 + 576][None], **states}
        if "sr" in rows:
            feeds["sr"] = np.array(16000, np.int64)
        for key in rows:
            rows[key].append(feeds[key])
        states = dict(zip(states, session.run(None, feeds)[1:], strict=True))
    return Case(onnx.load(path), Requests({key: np.stack(found) for key, found in rows.items()}, batched=False))


def prepared(case: Case) -> list[tuple[str, dict[str, Any]]]:
    """The preparing steps that the model takes."""
    steps: list[tuple[str, dict[str, Any]]] = []
    for name in ("onnx_fix_shapes", "onnx_simplify"):
        try:
            case.chain(*steps, (name, {}))
        except PassError:
            continue
        steps.append((name, {}))
    return steps


def top1(case: Case, data: bytes) -> float:
    (wanted,) = answers(case.artifact.data, case.requests).values()
    (found,) = answers(data, case.requests).values()
    return float(np.mean(wanted.argmax(1) == found.argmax(1)))


def test_magika_keeps_its_answers_where_the_quantizers_defaults_lose_them() -> None:
    case = magika()
    check_onnx(case.artifact.data, "magika.onnx")
    steps = prepared(case)
    whole = len(case.artifact.data)
    for last, least, size in [
        (("onnx_float16", {}), 1.0, 0.55),
        (INT8, 0.9, 0.3),
        (("onnx_int8", {"reduce_range": False, "ranges": "entropy"}), 0.9, 0.3),
        (("onnx_int8_dynamic", {}), 0.95, 0.9),
    ]:
        found = case.chain(*steps, last)
        assert top1(case, found.data) >= least, last
        assert len(found.data) <= size * whole, last
    assert case.error(case.chain(*steps).data) < 2e-3


@pytest.mark.parametrize("name", SILEROS)
def test_a_stateful_model_with_branches_goes_through_every_pass(name: str) -> None:
    case = silero(name)
    check_onnx(case.artifact.data, name)
    steps = prepared(case)
    plain = case.chain(*steps).data if steps else case.artifact.data
    assert case.error(plain) < 1e-3
    assert case.error(case.chain(*steps, ("onnx_float16", {})).data) < 5e-3
    assert case.error(case.chain(*steps, ("onnx_int8_dynamic", {})).data) < 0.05
    narrow = case.chain(*steps, INT8)
    kinds = onnx.load_from_string(narrow.data)
    assert "DequantizeLinear" in str(kinds) and len(narrow.data) < 0.8 * len(case.artifact.data)
    assert case.error(case.chain(*steps, ("onnx_opset", {"opset": 20})).data) < 1e-3
    try:
        both = case.chain(*steps, INT8, ("onnx_int8_dynamic", {"operators": ("LSTM",)})).data
    except UnchangedError:
        assert name == "silero_vad_op18_ifless", "its LSTM is written out"
        return
    assert len(both) < len(narrow.data)
