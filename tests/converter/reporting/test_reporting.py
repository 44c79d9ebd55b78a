"""Danger: a report that runs what a model's name holds, hides a rejected form, or says where it was not measured."""

from __future__ import annotations

import io
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_converter import reporting
from edgewise_converter.hardware import Host
from edgewise_converter.metrics.score import OutputAgreement, Score
from edgewise_converter.reporting import chart, colours, latency_plot, words
from edgewise_converter.reporting.details import Details, LayerDamage
from edgewise_converter.search.result import CandidateRecord, Row, SearchResult
from edgewise_protocol.manifest import Proof
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

HOSTILE = "</style></svg><script>alert(1)</script><img src=x onerror='alert(2)'>\"&amp;\u202egnp.exe\x00\ud800$x$_{y}"


def score(value: float, float_value: float = 0.9) -> Score:
    agreed = OutputAgreement(
        output=HOSTILE, agreement=0.99, basis="top-1", cosine=0.999, relative_error=0.02, max_error=1.0
    )
    return Score(name="top1", value=value, float_value=float_value, samples=1000, labelled=True, outputs=(agreed,))


def row(name: str, verdict: str, size: int | None, value: float | None, ms: float | None, **more: Any) -> Row:
    return Row(
        candidate=CandidateRecord(
            name=name, engine="onnxruntime", format="onnx", precision="int8", steps=(f"pass({HOSTILE})",)
        ),
        size_bytes=size,
        score=None if value is None else score(value),
        latency_ms=ms,
        verdict=verdict,  # type: ignore[arg-type]
        reason=more.pop("reason", ""),
        **more,
    )


ROWS = (
    row("int8", "winner", 40_000, 0.899, 0.2, reason="it is the fastest"),
    row("int8 small", "pareto", 30_000, 0.896, 0.3),
    row("float32", "dominated", 160_000, 0.9, 0.4),
    row("int8 minmax", "rejected", 40_000, 0.7, None, reason="accuracy: 20 points lost", short="accuracy"),
    row("int4", "rejected", None, None, None, reason="pass-unchanged: nothing to narrow"),
    row("huge", "rejected", 9_000_000, None, None, reason="size: over the budget"),
)


def result(rows: tuple[Row, ...] = ROWS, **changes: Any) -> SearchResult:
    found = SearchResult(
        model="kws",
        profile="raspberry-pi-4-64",
        objective="latency",
        accuracy_drop=0.5,
        metric="top1",
        samples=1000,
        baseline="float32",
        rows=rows,
        winner=rows[0].candidate.name if rows else "",
        host=Host(machine="x86_64", cpu="Some CPU"),
        measured_on="host (Some CPU)",
    )
    return msgspec.structs.replace(found, **changes)


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(data.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_the_table_has_every_candidate_with_its_verdict_and_reason() -> None:
    columns, rows = reporting.table(result())
    assert len(rows) == len(ROWS) and all(len(r) == len(columns) for r in rows)
    assert rows[0] == [
        *("int8", "onnxruntime", "39.1 KiB", "89.90 %", "-0.10", "0.200 ms"),
        *("4.00 x smaller, 2.00 x faster", "winner", "it is the fastest"),
    ]
    assert rows[2][6] == "-", "float is not held against itself"
    assert rows[4][2:7] == ["-", "-", "-", "-", "-"] and rows[4][7:] == [
        "rejected",
        "pass-unchanged: nothing to narrow",
    ]


def test_the_front_and_what_was_not_taken_are_all_there_is() -> None:
    columns, rows = reporting.front(result())
    assert "why" not in columns and all(len(r) == len(columns) for r in rows)
    shown = {row[0] for row in rows}
    assert "int8" in shown and "float32" in shown
    rest = dict(reporting.others(result()))
    told = [name for names in rest.values() for name in names]
    assert sorted([*shown, *told]) == sorted(row.candidate.name for row in ROWS)
    assert rest["pass-unchanged: nothing to narrow"] == ["int4"]
    assert reporting.others(result(ROWS[:1])) == []


def test_figures_are_worded() -> None:
    assert (words.size(1023), words.size(3 << 20), words.size(None)) == ("1.0 KiB", "3.00 MiB", "-")
    assert (words.metric("auc-score", 0.8415), words.metric("top1", 0.8415)) == ("0.8415", "84.15 %")
    assert (words.lost(score(0.9)), words.lost(score(0.91)), words.lost(score(0.89))) == ("0.00", "+1.00", "-1.00")
    assert [words.short(r) for r in ROWS] == ["", "", "", "accuracy", "pass-unchanged", "size"]
    assert words.shortened("/features/0/conv/quant", 11) == "/feat…quant"
    assert words.ratio(100, 50, "smaller", "larger") == "2.00 x smaller"
    assert words.ratio(100, 250, "smaller", "larger") == "2.50 x larger"
    assert words.ratio(100, 100.2, "smaller", "larger") == words.ratio(None, 1, "smaller", "larger") == ""
    assert words.error(1e300) == "not finite"


@settings(max_examples=40)
@given(st.text(max_size=600))
def test_foreign_text_is_one_visible_line(text: str) -> None:
    shown = words.plain(text)
    assert len(shown.encode()) <= 4 * 501 and len(shown) <= 501
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", shown)


def test_the_page_holds_all_and_says_what_was_measured_where() -> None:
    proofs = (
        Proof(machine="x86_64", cpu="Some CPU", engine_version="1.32.0"),
        Proof(machine="aarch64", cpu="cortex-a72", engine_version="1.32.0", emulated=True),
    )
    details = Details(
        bundle="kws-1.ewb",
        bundle_sha256="ab" * 32,
        versions={"onnxruntime": "1.32.0"},
        command="edgewise convert kws.onnx -p raspberry-pi-4-64",
        proofs=proofs,
        layers=(
            LayerDamage(layer="conv1", damage=0.5, kept_float=True),
            LayerDamage(layer="fc", damage=0, kept_float=False),
        ),
        layers_of="int8 <mixed>",
    )
    page = Page(reporting.html(result(notes=("few samples",)), details))
    for said in (
        *(r.candidate.name for r in ROWS),
        *(r.reason for r in ROWS if r.reason),
        "Measured on host (Some CPU)",
        "on x86_64, Some CPU, engine 1.32.0, on real hardware",
        "under an emulator. That proves loading and numerics, never latency.",
        "4.00 x smaller, 2.00 x faster than float",
        "int8 <mixed>",
        "1 of 2 layers stay in float",
        "few samples",
        "ab" * 32,
        "edgewise convert kws.onnx",
        "6, 3",
    ):
        assert said in page.text, said
    assert "not run on the target" not in page.text
    assert "not run on the target's instruction set" in Page(reporting.html(result())).text


def test_the_page_loads_nothing_and_runs_nothing_whatever_names_hold() -> None:
    rows = tuple(
        row(HOSTILE + str(i), verdict, 40_000 + i, 0.899, 0.2 + i, reason=HOSTILE)
        for i, verdict in enumerate(("winner", "pareto", "dominated", "rejected"))
    )
    details = Details(
        bundle=HOSTILE,
        versions={HOSTILE: HOSTILE},
        command=HOSTILE,
        data_fingerprint=HOSTILE,
        proofs=(Proof(machine=HOSTILE[:32], cpu=HOSTILE, engine_version=HOSTILE),),
        layers=(LayerDamage(layer=HOSTILE, damage=1.0, kept_float=True),),
        damage_unit=HOSTILE,
    )
    hostile = result(rows, model=HOSTILE, profile=HOSTILE, metric=HOSTILE, measured_on=HOSTILE, notes=(HOSTILE,))
    data = reporting.html(hostile, details)
    page = Page(data)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "a", "form", "base"}
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not {a for a in attributes if a.startswith("on")} and not attributes & {"src", "href"}
    assert sum(tag == "style" for tag, _ in page.tags) == data.count(b"</style>") == 1
    assert b"http://" not in data and b"https://" not in data and b"@import" not in data and b"url(" not in data
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")
    assert "\u202e" not in data.decode() and "\x00" not in data.decode()
    assert reporting.png(hostile).startswith(b"\x89PNG"), "matplotlib takes no dollar for mathematics"


def test_equal_results_give_equal_bytes() -> None:
    assert reporting.html(result()) == reporting.html(result())
    assert reporting.png(result(ROWS[:2])) == reporting.png(result(ROWS[:2]))


@pytest.mark.parametrize(
    "rows",
    [
        (),
        ROWS[4:5],
        tuple(row(f"form {i}", "dominated" if i else "winner", 1000, 0.9, 0.1) for i in range(42)),
        tuple(row(f"form {i}", "dominated" if i else "winner", 10 ** (i + 1), 0.9, 10.0**-i) for i in range(7)),
    ],
)
def test_any_number_of_candidates_is_drawn(rows: tuple[Row, ...]) -> None:
    found = result(rows)
    picture = Image.open(io.BytesIO(reporting.png(found)))
    assert picture.width > 1200 and len(set(np.asarray(picture.convert("L")).ravel().tolist())) > 20
    page = Page(reporting.html(found))
    assert page.text.count("\nwinner\n") == (1 if rows and rows[0].verdict == "winner" else 0)


def test_float_that_stays_is_said() -> None:
    rows = (row("float32", "winner", 160_000, 0.9, 0.4), ROWS[3])
    assert "so float stays" in Page(reporting.html(result(rows))).text
    assert "nothing was bundled" in Page(reporting.html(result(ROWS[3:], winner=""))).text


def test_files_are_written_whole(tmp_path: Path) -> None:
    reporting.write_png(result(), tmp_path / "r.png")
    reporting.write_html(result(), tmp_path / "r.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.png"]
    assert (tmp_path / "r.html").read_bytes() == reporting.html(result())


def test_the_front_is_of_those_that_nothing_beats() -> None:
    found = chart.points(result())
    assert [p.number for p in found] == [1, 2, 3, 4, 6], "what was not made is not drawn"
    assert [p.row.candidate.name for p in chart.front(found)] == ["int8", "int8 small"]
    assert found[3].latency_ms is None


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20))
def test_axes_hold_their_values_and_have_ticks(values: list[float]) -> None:
    axis = chart.axis(values)
    assert all(0 <= axis.at(v) <= 1 for v in values)
    assert len(axis.ticks()) >= 1 and all(axis.low <= t <= axis.high for t in axis.ticks())


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(100, 700), st.integers(60, 400)), min_size=1, max_size=14, unique=True))
def test_labels_stay_inside_and_apart(anchors: list[tuple[int, int]]) -> None:
    spread = [(x, y) for i, (x, y) in enumerate(anchors) if all(abs(x - a) + abs(y - b) > 60 for a, b in anchors[:i])]
    size, area = (18.0, 13.0), (50.0, 10.0, 780.0, 440.0)
    places = chart.place(spread, [size] * len(spread), area)
    for x, y in places:
        assert area[0] <= x - 9 and x + 9 <= area[2] and area[1] <= y - 6.5 and y + 6.5 <= area[3]
    for (x1, y1), (x2, y2) in itertools.combinations(places, 2):
        assert abs(x1 - x2) >= size[0] or abs(y1 - y2) >= size[1]


def test_colours_go_from_no_loss_to_all_that_was_allowed() -> None:
    ends = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (colours.STOPS[0], colours.STOPS[-1])]
    assert [colours.of_loss(s) for s in (-1.0, 0.0, 1.0, 2.0)] == [ends[0], ends[0], ends[1], ends[1]]
    assert len({colours.of_loss(i / 20) for i in range(21)}) == 21


def test_a_plot_of_latencies_is_drawn() -> None:
    times = np.random.default_rng(0).lognormal(12, 0.3, 5000).astype(int).tolist()
    picture = Image.open(io.BytesIO(latency_plot.draw({"a": times, "$b_{": [10**6], HOSTILE: times}, HOSTILE)))
    assert picture.width > 900
