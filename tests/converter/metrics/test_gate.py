"""Danger: a gate that lets through what is below its target, or reads labels from the wrong place."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from edgewise_converter.errors import MetricError, ScoresError
from edgewise_converter.metrics import score_files
from edgewise_converter.metrics.gate import sentence, target_check
from edgewise_converter.metrics.score import Score
from edgewise_converter.metrics.score_files import judge_files, parse
from edgewise_converter.search.judging import least_reason

TABLE = "normal_id_01_0.wav,1.0\nanomaly_id_01_1.wav,3.0\nnormal_id_01_2.wav,2.0\nanomaly_id_01_3.wav,1.5\n"


def test_a_float_model_passes_and_its_int8_form_below_the_target_is_refused() -> None:
    assert target_check("auc", 0.8760, 0.85).passed
    assert sentence(target_check("auc", 0.8415, 0.85)) == "refused: auc is 0.8415, 0.0085 under the target 0.85"


def test_the_search_refuses_by_the_same_gate() -> None:
    int8 = Score(name="auc-score", value=0.8415, float_value=0.8760, samples=9, labelled=True, outputs=())
    assert "0.8415" in least_reason(int8, 0.85) and "0.8760" in least_reason(int8, 0.85)
    assert least_reason(int8, 0.84) == least_reason(int8, None) == ""
    with pytest.raises(MetricError, match="between 0 and 1"):
        least_reason(int8, 85)


def test_the_target_itself_passes_and_no_number_does_not() -> None:
    assert target_check("auc", 0.85, 0.85).passed
    assert not target_check("auc", 0.85 - 1e-9, 0.85).passed
    assert not target_check("auc", float("nan"), 0.0).passed


@pytest.mark.parametrize("target", [-0.1, 1.1, 85, float("nan")])
def test_a_target_that_is_no_share_is_refused(target: float) -> None:
    with pytest.raises(MetricError, match="between 0 and 1"):
        target_check("auc", 0.9, target)


def test_labels_come_from_names_a_third_column_or_a_named_one() -> None:
    assert parse(TABLE, "a.csv").y.tolist() == [0, 1, 0, 1]
    assert parse("data/Anomaly_1,2\nx/normal_2,1\n", "a.csv").y.tolist() == [1, 0]
    assert parse("a,2,1\nb,1,0\n", "a.csv").y.tolist() == [1, 0]
    headed = "name,score,split,truth\nnormal_1,2.0,t,anomaly\nanomaly_1,1.0,t,normal\n"
    assert parse(headed, "a.csv", "truth").y.tolist() == [1, 0]
    assert parse(headed, "a.csv", "4").y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("", None, "no scores"),
        ("name,score\n", None, "no scores"),
        ("normal_1,1.0\nnormal_2,high\n", None, "line 2"),
        ("normal_1\n", None, "line 1"),
        ("cat_1,1.0\n", None, "neither 'anomaly_' nor 'normal_'"),
        ("a,1.0,2\n", None, "label is '2'"),
        ("a,1.0\nb,2.0\n", "3", "label is ''"),
        ("a,1.0\n", "truth", "no column 'truth'"),
        ('"a,1.0\n', None, "not CSV"),
    ],
)
def test_what_is_no_table_of_scores_is_told_with_its_line(text: str, column: str | None, says: str) -> None:
    with pytest.raises(ScoresError, match=r"^a\.csv") as caught:
        parse(text, "a.csv", column)
    assert says in str(caught.value)


def peak_of_refusing(text: str, says: str) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(ScoresError, match=says):
            parse(text, "a.csv")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_table_is_refused_before_it_takes_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_files, "MAX_ROWS", 1000)
    assert peak_of_refusing("a\n" * 200_000, "line 1: name,score") < 1 << 20
    assert peak_of_refusing("normal_1,1\n" * 100_000, "more than 1000 scores") < 1 << 20
    assert peak_of_refusing("," * 500_000, "row of more than 65536 characters") < 1 << 20
    # One row of many lines.
    assert peak_of_refusing('x,1,"\n' + '","\n' * 200_000, "row of more than 65536 characters") < 1 << 20


def test_each_machine_counts_the_same(tmp_path: Path) -> None:
    small, large = tmp_path / "id_1.csv", tmp_path / "id_2.csv"
    small.write_text(TABLE)
    large.write_text("".join(f"{'anomaly' if i % 2 else 'normal'}_{i},{i % 2}\n" for i in range(200)))
    found = judge_files([small, large])
    assert [f.auc for f in found.files] == [0.75, 1.0] and found.value == 0.875


def test_bad_files_are_told(tmp_path: Path) -> None:
    one = tmp_path / "one.csv"
    one.write_text("normal_1,1\nnormal_2,2\n")
    with pytest.raises(MetricError, match=r"one\.csv.*both classes"):
        judge_files([one])
    with pytest.raises(ScoresError, match="No such file"):
        judge_files([tmp_path / "none.csv"])
    one.write_bytes(b"\xff\xfe\x00normal")
    with pytest.raises(ScoresError, match="not text"):
        judge_files([one])
    with pytest.raises(ScoresError, match="different files"):
        judge_files([one, one])
