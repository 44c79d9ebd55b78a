"""Guards against a device that a kill, a power cut or a full disk leaves with no model, or with one nobody verified.

Every durable operation of the agent, from the download of a bundle to its commitment, a failed
self-test, an abort and a roll-back, is a point. At each the agent is killed, is killed within the
write, is killed a second time in the restart, finds the disk full from there on, and is refused
just once; then it is restarted.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest

MODES = ("kill", "torn", "twice", "full", "once")
POINTS = 500
SAMPLED = {"kill": 20, "torn": 8, "twice": 8, "full": 12, "once": 12}


def summary(faults: Any, cases: list[tuple[str, int]]) -> str:
    tried = {mode: sum(case[0] == mode for case in cases) for mode in MODES}
    return f"{len(faults.kinds)} points {faults.counts()}; tried {tried}"


@pytest.mark.timeout(600)
def test_a_sample_of_the_points(faults: Any, tell: Callable[[str], None]) -> None:
    chance = random.Random(20)
    cases = [case for mode, n in SAMPLED.items() for case in chance.sample(faults.cases((mode,)), n)]
    wrong = faults.run(cases, tell)
    tell(summary(faults, cases))
    assert len(faults.kinds) >= POINTS
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
def test_every_point(faults: Any, mode: str, tell: Callable[[str], None]) -> None:
    cases = faults.cases((mode,))
    wrong = faults.run(cases, lambda text: tell(f"{mode}: {text}"))
    tell(summary(faults, cases))
    assert not wrong, f"{len(wrong)} of {len(cases)} points:\n" + "\n".join(wrong[:20])


def test_everything_is_synced_before_it_is_relied_on(faults: Any, order: Any) -> None:
    assert order.violations(order.parse(faults.log, faults.state)) == []


def operations(order: Any, *lines: str) -> list[Any]:
    found = []
    for number, line in enumerate(lines, 1):
        kind, path, *other = line.split()
        found.append(order.Operation(number, kind, PurePosixPath(path), PurePosixPath(other[0]) if other else None))
    return found


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        (("write .a.tmp", "rename .a.tmp a"), "not synced before"),
        (("write b/x", "sync b/x", "rename b c"), ""),
        (("create b", "create b/x", "write b/x", "sync b/x", "rename b c"), "not synced before"),
        (("create b", "create b/x", "write b/x", "sync b/x", "sync b", "rename b c"), ""),
        (("rename a b", "rename .i.tmp installed.json"), "names that are not synced"),
        (("rename a b", "sync .", "rename .i.tmp installed.json"), ""),
        (("remove a", "rename .i.tmp installed.json"), ""),
        (("write store/partial/p", "rename .i.tmp installed.json"), "bytes that are not synced"),
        (("write store/partial/p", "sync store/partial/p", "rename .i.tmp installed.json"), ""),
        (("write outbox.sqlite-wal", "rename .i.tmp installed.json"), ""),
    ],
)
def test_the_order_is_judged(order: Any, lines: tuple[str, ...], rule: str) -> None:
    found = order.violations(operations(order, *lines))
    assert [rule in text for text in found] == ([True] if rule else [])
