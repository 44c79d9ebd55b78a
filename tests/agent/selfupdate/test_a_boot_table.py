"""The danger: a new agent that crashes, hangs or is cut off keeps running, and the device is lost to its fleet."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import edgewise_agent.launcher as launcher
import edgewise_agent.selfupdate.boot as boots
import pytest
from edgewise_agent.selfupdate.boot import (
    BASE,
    MAX_QUICK_DEATHS,
    MAX_TRIALS,
    RESTART,
    SLOTS,
    TABLE,
    Boot,
    Confirm,
    Died,
    Event,
    Started,
    Switch,
    TimedOut,
    Vacate,
    load,
    save,
    step,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

NEW, OLD = "1" * 64, "0" * 64


def after(boot: Boot, *events: Event) -> Boot:
    for event in events:
        boot = step(boot, event)
    return boot


TRIAL = after(Boot(), Switch("a", NEW, True))


def test_every_state_answers_every_event() -> None:
    events = {Switch, Confirm, Vacate, Started, Died, TimedOut}
    assert set(TABLE) == {(state, event) for state in ("steady", "trial") for event in events}


def test_a_new_agent_that_confirms_itself_stays() -> None:
    boot = after(TRIAL, Started(), Confirm(), Died(-9, 1.0), Started(), Died(1, 99.0))
    assert (boot.state, boot.current, boot.sha256, boot.failed) == ("steady", "a", NEW, "")


@pytest.mark.parametrize("status", [1, -11, -9, 6, 75, 0])
def test_a_new_agent_that_keeps_ending_is_given_up(status: int) -> None:
    boot = TRIAL
    for _ in range(MAX_TRIALS):
        boot = after(boot, Started(), Died(status, 0.1))
        assert boot.state == "trial"
    boot = after(boot, Started())
    assert (boot.state, boot.current, boot.failed, boot.code) == ("steady", BASE, NEW, "agent-boot-loop")
    assert "3 times" in boot.text


def test_a_power_cut_counts_as_a_start() -> None:
    assert after(TRIAL, *[Started()] * MAX_TRIALS).state == "trial"
    assert after(TRIAL, *[Started()] * (MAX_TRIALS + 1)).failed == NEW


def test_a_hanging_agent_is_given_up_at_once() -> None:
    boot = after(TRIAL, Started(), TimedOut())
    assert (boot.current, boot.failed, boot.code) == (BASE, NEW, "agent-not-confirmed")


def test_the_agent_before_a_trial_is_what_comes_back() -> None:
    steady = after(TRIAL, Started(), Confirm())
    second = after(steady, Switch("b", "2" * 64, True))
    assert (second.fallback, second.fallback_sha256) == ("a", NEW)
    back = after(second, Started(), TimedOut())
    assert (back.current, back.sha256, back.failed) == ("a", NEW, "2" * 64)
    # A switch in the middle of a trial leaves what was never confirmed behind.
    third = after(second, Started(), Switch(BASE, "", False))
    assert (third.state, third.current, third.fallback) == ("steady", BASE, BASE)
    fourth = after(second, Started(), Switch("a", NEW, False))
    assert (fourth.state, fourth.current, fourth.fallback) == ("steady", "a", BASE)


def test_a_confirmed_agent_that_cannot_start_any_more_is_left_in_the_end() -> None:
    """A disk that damages a slot must not need a visit."""
    boot = after(TRIAL, Started(), Confirm())
    for _ in range(MAX_QUICK_DEATHS - 1):
        boot = after(boot, Started(), Died(1, 0.2))
    assert boot.current == "a"
    assert after(boot, Started(), Died(1, 61.0)).boots == 0
    assert after(boot, Started(), Died(RESTART, 0.1)).boots == 0
    gone = after(boot, Started(), Died(1, 0.2))
    assert (gone.current, gone.failed) == (BASE, NEW)


class Life(RuleBasedStateMachine):
    """Any sequence of what agent, launcher and the world may do."""

    @initialize()
    def begin(self) -> None:
        self.boot = Boot()
        self.confirmed = {("", BASE)}
        self.starts = 0

    @rule(slot=st.sampled_from(SLOTS), sha256=st.sampled_from(["2" * 64, "3" * 64, "4" * 64]))
    def update(self, slot: str, sha256: str) -> None:
        if slot == self.boot.current:
            return
        self.boot = after(self.boot, Vacate(slot))
        self.confirmed = {pair for pair in self.confirmed if pair[1] != slot}
        assert slot != self.boot.fallback
        self.boot = after(self.boot, Switch(slot, sha256, True))
        self.starts = 0

    @rule()
    def start(self) -> None:
        self.boot = after(self.boot, Started())
        self.starts = self.starts + 1 if self.boot.state == "trial" else 0

    @rule(status=st.sampled_from([0, 1, 6, 75, -9, -11]), ran=st.sampled_from([0.1, 100.0]))
    def die(self, status: int, ran: float) -> None:
        self.boot = after(self.boot, Died(status, ran))

    @rule()
    def hang(self) -> None:
        self.boot = after(self.boot, TimedOut())

    @precondition(lambda self: self.starts > 0)
    @rule()
    def confirm(self) -> None:
        self.boot = after(self.boot, Confirm())
        self.confirmed.add((self.boot.sha256, self.boot.current))

    @invariant()
    def only_what_was_confirmed_runs_without_end(self) -> None:
        if self.boot.state == "steady":
            assert (self.boot.sha256, self.boot.current) in self.confirmed
        assert (self.boot.fallback_sha256, self.boot.fallback) in self.confirmed

    @invariant()
    def trials_end(self) -> None:
        assert self.starts <= MAX_TRIALS


TestLife = Life.TestCase


@given(st.builds(Boot, state=st.sampled_from(["steady", "trial"]), current=st.sampled_from([BASE, *SLOTS])))
def test_the_record_is_read_as_it_was_written(boot: Boot) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), boot)
        assert load(Path(folder)) == boot


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff", b'{"current": "../../tmp"}', b'{"state": "x"}', b'{"boots": "many"}', b'{"format": 2}',
     b'{"confirm_within_s": "nan"}', b'{"boots": 1e999}', b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_record_means_the_base_installation(tmp_path: Path, data: bytes) -> None:
    save(tmp_path, Boot(current="a"))
    (boots.folder_of(tmp_path) / "boot.json").write_bytes(data)
    assert load(tmp_path) == Boot()


def test_what_a_newer_agent_adds_to_the_record_is_ignored(tmp_path: Path) -> None:
    save(tmp_path, Boot(current="b", sha256=NEW))
    path = boots.folder_of(tmp_path) / "boot.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "added": {"later": 1}}))
    assert load(tmp_path) == Boot(current="b", sha256=NEW)


def test_the_launcher_needs_nothing_but_python(tmp_path: Path) -> None:
    """Whatever an update of a package does, the launcher must still start."""
    for module in (launcher, boots):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        names |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        foreign = {name for name in names if name and name.split(".")[0] not in sys.stdlib_module_names}
        assert foreign <= {"edgewise_agent.selfupdate", "edgewise_agent.selfupdate.boot"}
    agent = Path(str(launcher.__file__)).parents[1]
    code = (
        f"import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; sys.path.append({str(agent)!r});"
    )
    code += "import edgewise_agent.launcher; print('started')"
    done = subprocess.run([sys.executable, "-S", "-I", "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "started", done.stderr
