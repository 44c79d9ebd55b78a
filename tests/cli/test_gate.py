"""Danger: `edgewise gate` ends with status 0 for a model below its target."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MODELS = os.environ.get("EDGEWISE_MODELS", "")


def table(path: Path, wrong: int) -> Path:
    """20 scores of which `wrong` anomalies look normal."""
    rows = [f"normal_{i:02}.wav,{i}" for i in range(10)]
    rows += [f"anomaly_{i:02}.wav,{-1 if i < wrong else 100 + i}" for i in range(10)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_target_that_is_reached_passes(edgewise: Callable[..., Any], tmp_path: Path) -> None:
    files = [table(tmp_path / "id_01.csv", 1), table(tmp_path / "id_02.csv", 2)]
    done = edgewise("gate", *files, "--target", 0.85, "--json")
    assert done.status == 0
    assert done.document["passed"] and done.document["value"] == pytest.approx(0.85)
    assert [f["auc"] for f in done.document["files"]] == [0.9, 0.8]
    told = edgewise("gate", *files, "--target", 0.85)
    assert told.status == 0 and "passed: auc is 0.8500" in told.out and "mean of 2 files" in told.out


def test_below_the_target_is_refused_with_a_sentence(edgewise: Callable[..., Any], tmp_path: Path) -> None:
    done = edgewise("gate", table(tmp_path / "id_01.csv", 2), "--target", 0.85)
    assert done.status == 1 and "refused: auc is 0.8000, 0.0500 under the target 0.85" in done.err
    document = edgewise("gate", tmp_path / "id_01.csv", "--target", 0.85, "--json").document
    assert document["error"]["code"] == "gate" and document["error"]["value"] == pytest.approx(0.8)


def test_what_cannot_be_judged_is_an_error_of_its_own(edgewise: Callable[..., Any], tmp_path: Path) -> None:
    good = table(tmp_path / "id_01.csv", 1)
    assert edgewise("gate", good, "--target", 85).status == 2
    assert edgewise("gate", good, "--target", 0.5, "--metric", "f1").status == 2
    assert edgewise("gate", tmp_path / "none.csv", "--target", 0.5).status == 9
    good.write_text("normal_1,1\nnormal_2,2\n")
    done = edgewise("gate", good, "--target", 0.5)
    assert done.status == 2 and "samples of both classes" in done.err


@pytest.mark.skipif(not MODELS, reason="EDGEWISE_MODELS names no folder with mlperf_tiny")
@pytest.mark.parametrize(
    ("prefix", "auc", "status"),
    [("tflite_id", 0.8760, 0), ("tflite_quant_fullint_id", 0.8415, 1), ("tflite_quant_id", 0.8394, 1)],
)
def test_mlperf_tiny_passes_the_float_detector_and_refuses_the_int8_one(
    edgewise: Callable[..., Any], prefix: str, auc: float, status: int
) -> None:
    files = sorted(Path(MODELS, "mlperf_tiny", "ad_scores").glob(f"{prefix}_0*.csv"))
    assert len(files) == 4
    done = edgewise("gate", *files, "--target", 0.85, "--json")
    assert done.status == status
    found = done.document if status == 0 else done.document["error"]
    assert found["value"] == pytest.approx(auc, abs=5e-5)
