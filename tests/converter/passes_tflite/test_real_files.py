"""Danger: what holds for small files made by hand does not hold for those that people have.

Reads every `.tflite` below `EDGEWISE_MODELS`; skipped without it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_converter.engines.named_tflite import NamedTflite
from edgewise_converter.errors import ModelFileError, UnchangedError
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.requests import Requests
from edgewise_converter.tflite_file.admission import admit
from edgewise_converter.tflite_file.compat import check_tflite_runtime
from edgewise_converter.tflite_file.reading import read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FOLDER = os.environ.get("EDGEWISE_MODELS", "")
REAL = sorted(Path(FOLDER).rglob("*.tflite")) if FOLDER else []
NAMES = [path.name for path in REAL]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not REAL, reason="EDGEWISE_MODELS names no folder with .tflite")]
NARROW = ("tflite_float16", "tflite_int8_dynamic", "tflite_int8", "tflite_int16x8")
RMS = {"tflite_float16": 0.02, "tflite_int8_dynamic": 0.3, "tflite_int8": 0.4, "tflite_int16x8": 0.3}
"""Of the answers' own size, on inputs that no camera took; real accuracy is judged where there are labels."""


def feeds(model: NamedTflite, count: int, seed: int) -> dict[str, Any]:
    g = np.random.default_rng(seed)
    found = {}
    for spec in model.inputs:
        colour = g.normal(0, 0.5, (count, *(1,) * (len(spec.shape) - 2), spec.shape[-1]))
        found[spec.name] = np.clip(colour + g.normal(0, 0.2, (count, *spec.shape[1:])), -1, 1).astype(np.float32)
    return found


def make(name: str, path: Path) -> tuple[NamedTflite, bytes]:
    data = path.read_bytes()
    source = NamedTflite(data)
    materials = Materials(path.stem, source.inputs, source.outputs, Requests(feeds(source, 24, 1)))
    entry = PASSES[name]
    return source, entry.load()(materials, Artifact(data, "tflite", source.precision), entry.config()).data  # type: ignore[arg-type]


@pytest.mark.parametrize("path", REAL, ids=NAMES)
def test_every_file_is_admitted_and_written_smaller_with_the_same_answers(path: Path) -> None:
    admit(path.read_bytes(), path.name)
    source, data = make("tflite_compact", path)
    assert len(data) < len(path.read_bytes())
    x = feeds(source, 4, 2)
    want, got = source.infer(x), NamedTflite(data).infer(x)
    assert list(want) == list(got)
    for output in want:
        np.testing.assert_array_equal(got[output], want[output])


@pytest.mark.parametrize("path", REAL, ids=NAMES)
@pytest.mark.parametrize("name", NARROW)
def test_every_pass_gives_a_near_and_smaller_file_or_says_why_not(path: Path, name: str) -> None:
    try:
        source, data = make(name, path)
    except UnchangedError as error:
        assert "already" in str(error)
        return
    try:
        plain = len(make("tflite_float32", path)[1])  # a sparse file grows when it is made dense
    except UnchangedError:
        plain = len(path.read_bytes())
    assert len(data) < plain
    _, again = make(name, path)
    assert again == data
    # Of the calibration samples: what these do not cover is cut off, by intent.
    loaded, x = NamedTflite(data), {name: array[:8] for name, array in feeds(source, 24, 1).items()}
    assert loaded.precision == PASSES[name].precision
    want, got = source.infer(x), loaded.infer(x)
    for output in want:
        rms = np.sqrt(np.mean((got[output] - want[output]) ** 2))
        assert rms < RMS[name] * np.sqrt(np.mean(want[output] ** 2)) + 1e-3, output
    if name == "tflite_int8_dynamic":
        with pytest.raises(ModelFileError, match="int8 weights"):
            check_tflite_runtime(data, path.name)
    else:
        check_tflite_runtime(data, path.name)


@pytest.mark.parametrize("path", REAL, ids=NAMES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_real_file_with_forged_bytes_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    forged = bytearray(path.read_bytes())
    ends = st.one_of(st.integers(0, 4000), st.integers(max(0, len(forged) - 40_000), len(forged) - 1))
    for _ in range(data.draw(st.integers(1, 6))):
        forged[data.draw(ends.filter(lambda at: at < len(forged)))] = data.draw(st.integers(0, 255))
    try:
        read(bytes(forged))
    except ModelFileError:
        return
