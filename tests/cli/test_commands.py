"""Danger: scripts that cannot tell what happened: wrong exit statuses, `--json` that is not JSON, help that breaks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from edgewise_cli.app import app
from edgewise_cli.commands.rollout import parse_phase
from edgewise_cli.config import load_profiles
from edgewise_cli.errors import MEANING, Exit, UsageError


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    yield path, command
    for name, child in children.items():
        yield from _commands(child, (*path, name))


HANDED_OVER = {("server",)}
"""Another program takes this one's place: tests/cli/test_passthrough.py runs it."""
ALL = [(path, command) for path, command in _commands(typer.main.get_command(app)) if path not in HANDED_OVER]
LEAVES = [(path, command) for path, command in ALL if not hasattr(command, "commands")]


@pytest.mark.parametrize("path", [path for path, _ in ALL], ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...], edgewise: Callable[..., Any]) -> None:
    shown = edgewise(*path, "--help")
    assert shown.status == 0
    assert "Usage" in shown.out


def test_every_command_takes_json_and_the_connection() -> None:
    assert len(LEAVES) > 30
    for path, command in LEAVES:
        names = {option for p in command.params for option in p.opts}
        assert {"--json", "--server", "--token"} <= names, path
        assert command.help, path


def test_the_help_tells_every_exit_status(edgewise: Callable[..., Any]) -> None:
    text = edgewise("--help").out
    for status in Exit:
        assert f"{int(status)}: {MEANING[status]}"[:40] in text


ROLLOUT: dict[str, Any] = {
    "id": "ro-1",
    "name": "",
    "model": "digits",
    "version": 2,
    "group": "all",
    "status": "running",
    "phase": 0,
    "phases": [{"percent": 10}, {"percent": 100}],
    "reason": "",
    "counts": {"cohort": 3, "exposed": 1, "pending": 1, "committed": 0, "failed": 0, "reverted": 0, "offline": 0},
    "devices": [{"device_id": "a", "state": "pending", "previous_version": 1, "error": ""}],
    "history": [{"at": "2026-11-24T10:00:00Z", "kind": "create", "device_id": None, "reason": "asked"}],
}
FEDERATION: dict[str, Any] = {
    "id": "fe-1",
    "model": "digits",
    "channel": "lab",
    "status": "finished",
    "reason": "",
    "round": 1,
    "rounds_wanted": 1,
    "promoted_version": 3,
    "rollout_id": "ro-2",
    "rounds": [
        {
            "number": 1,
            "state": "closed",
            "metrics": {"clients": 1, "samples": 10, "loss_before": 1.0, "loss_after": 0.5},
            "clients": [{"device_id": "a", "state": "aggregated", "samples": 10, "metrics": {}, "error": ""}],
        }
    ],
}
DEVICE = {
    "id": "a",
    "channel": "lab",
    "online": True,
    "simulated": True,
    "compatible": ["x86-64"],
    "last_seen_at": "2026-11-24T10:00:00Z",
    "models": [{"model": "digits", "state": "committed", "active_version": 1}],
}
WINDOW = {
    "device_id": "a",
    "model": "digits",
    "version": 1,
    "at": "2026-11-24T10:00:00Z",
    "samples": 50,
    "drifted": True,
    "severe": False,
    "features": [{"feature": "input.mean", "psi": 0.4, "psi_threshold": 0.2}],
}
ALERT = {
    "id": "al-1",
    "severity": "severe",
    "device_id": "a",
    "model": "digits",
    "version": 1,
    "opened_at": "2026-11-24T10:00:00Z",
    "reason": "input.mean",
}
ANSWERS: dict[tuple[str, str], Any] = {
    ("GET", "/status"): {"version": "0.1.0", "counts": {"devices": 1}, "trust": {"installed": False}, "broker": {}},
    ("GET", "/devices"): {"items": [DEVICE], "next": None},
    ("GET", "/groups"): {"items": [{"name": "all", "query": None, "members": 1}]},
    ("POST", "/groups"): {"name": "g", "query": None, "members": 0},
    ("GET", "/groups/g"): {"name": "g", "query": None, "members": 1, "devices": ["a"]},
    ("POST", "/rollouts"): ROLLOUT,
    ("GET", "/rollouts"): {"rollouts": [ROLLOUT]},
    ("GET", "/rollouts/ro-1"): ROLLOUT,
    ("POST", "/rollouts/ro-1/pause"): {**ROLLOUT, "status": "paused"},
    ("GET", "/drift"): {"windows": [WINDOW]},
    ("GET", "/alerts"): {"alerts": [ALERT]},
    ("POST", "/federations"): FEDERATION,
    ("GET", "/federations"): {"federations": [FEDERATION]},
    ("GET", "/federations/fe-1"): FEDERATION,
    ("GET", "/models"): {"items": [{"model": "digits", "latest": 1, "production": None, "channels": ["lab"]}]},
    ("GET", "/jobs"): {
        "jobs": [{"id": "j", "kind": "promote", "state": "failed", "worker": None, "attempts": 3, "error": "why"}]
    },
    ("GET", "/tokens"): {"items": [{"id": "t", "name": "n", "role": "viewer"}]},
}
ASKING = [
    ("status",),
    ("models",),
    ("device", "list"),
    ("device", "wait", "a"),
    ("group", "list"),
    ("group", "create", "g"),
    ("group", "show", "g"),
    ("rollout", "start", "digits", "2"),
    ("rollout", "list"),
    ("rollout", "status", "ro-1"),
    ("rollout", "pause", "ro-1"),
    ("drift",),
    ("alerts",),
    ("federate", "start", "digits", "--channel", "lab", "--lr", "0.05", "--base-version", "1", "--watch"),
    ("federate", "list"),
    ("federate", "status", "fe-1"),
    ("token", "list"),
    ("worker", "jobs"),
    ("profiles", "list"),
    ("profiles", "show", "x86-64"),
]


@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_answers_are_shown_to_people_and_given_to_scripts(
    arguments: tuple[str, ...], fleet: Any, edgewise: Callable[..., Any]
) -> None:
    fleet.answers = dict(ANSWERS)
    shown = edgewise(*arguments)
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.strip()
    given = edgewise(*arguments, "--json")
    assert given.status == 0
    assert given.document


def test_an_aborted_rollout_is_exit_status_1(fleet: Any, edgewise: Callable[..., Any]) -> None:
    aborted = {**ROLLOUT, "status": "aborted", "reason": "self-test failed on a"}
    fleet.answers = {("GET", "/rollouts/ro-1"): aborted}
    watched = edgewise("rollout", "status", "ro-1", "--watch", "--json")
    assert watched.status == 1
    assert watched.document["error"]["code"] == "rollout-aborted"
    assert watched.document["error"]["rollout"]["reason"] == "self-test failed on a"


def test_a_wait_that_runs_out_is_exit_status_7(fleet: Any, edgewise: Callable[..., Any]) -> None:
    fleet.answers = {("GET", "/rollouts/ro-1"): ROLLOUT}
    assert edgewise("rollout", "status", "ro-1", "--watch", "--timeout", "0").status == Exit.TIMED_OUT


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((401, {"code": "unauthenticated", "detail": "no"}), Exit.NOT_AUTHORISED),
        ((403, {"code": "forbidden", "detail": "no"}), Exit.NOT_AUTHORISED),
        ((404, {"code": "not-found", "detail": "no"}), Exit.NOT_FOUND),
        ((409, {"code": "wrong-state", "detail": "no"}), Exit.REFUSED),
        ((422, {"code": "metadata-signature", "detail": "no"}), Exit.TRUST),
        ((500, {"detail": "no"}), Exit.UNREACHABLE),
    ],
)
def test_problem_documents_become_exit_statuses(
    answer: tuple[int, Any], status: Exit, fleet: Any, edgewise: Callable[..., Any]
) -> None:
    fleet.answers = {("GET", "/status"): answer}
    said = edgewise("status")
    assert said.status == status
    assert said.err.strip().split(";")[0] == "edgewise: no"
    given = edgewise("status", "--json")
    assert given.document["error"]["message"].split(";")[0] == "no"


def test_who_lacks_a_token_is_told_where_to_give_it(fleet: Any, edgewise: Callable[..., Any]) -> None:
    fleet.answers = {("GET", "/status"): (401, {"code": "unauthenticated", "detail": "no"})}
    assert "--token" in edgewise("status").err


def test_a_profile_that_is_missing_is_made_by_the_command_that_the_error_names(
    fleet: Any, edgewise: Callable[..., Any], monkeypatch: Any, tmp_path: Path
) -> None:
    fleet.answers = dict(ANSWERS)
    monkeypatch.setenv("EDGEWISE_CONFIG", str(tmp_path / "config.toml"))
    command = edgewise("status", "--login", "lab").err.partition("`edgewise ")[2].partition("`")[0]
    assert edgewise(*command.split()).status == 0
    assert edgewise("status", "--login", "lab").status == 0


HOSTILE = "[/red] [bold]x"


def test_what_devices_say_is_no_markup(fleet: Any, edgewise: Callable[..., Any]) -> None:
    said = {**ROLLOUT, "reason": HOSTILE, "devices": [{"device_id": "d", "state": "failed", "error": HOSTILE}]}
    fleet.answers = {("GET", "/rollouts/ro-1"): said, ("GET", "/status"): (409, {"detail": HOSTILE})}
    shown = edgewise("rollout", "status", "ro-1")
    assert shown.status == 0
    assert shown.out.count(HOSTILE) == 2
    assert HOSTILE in edgewise("status").err


ACTING = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202eok"


def test_what_devices_and_files_say_never_acts_on_the_terminal(fleet: Any, edgewise: Callable[..., Any]) -> None:
    said = {**ROLLOUT, "reason": ACTING, "devices": [{"device_id": ACTING, "state": "failed", "error": ACTING}]}
    device = {"id": "d1", "name": ACTING, "home": "Zürich"}
    fleet.answers = {
        ("GET", "/rollouts/ro-1"): said,
        ("GET", "/status"): (409, {"detail": ACTING}),
        ("GET", "/devices/d1"): device,
        ("GET", "/devices/d1/events"): {"events": []},
    }
    shown = [edgewise("rollout", "status", "ro-1"), edgewise("status"), edgewise("device", "show", "d1")]
    for text in (text for found in shown for text in (found.out, found.err)):
        assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e"} & set(text)
    assert r"\x1b]0;owned\x07\x1b[2J\x0d\x9b31m\u202eok" in shown[0].out
    assert r"\x1b[2J" in shown[1].err
    assert json.loads(shown[2].out)["name"] == ACTING
    device["name"] = "plain"
    assert "Zürich" in edgewise("device", "show", "d1").out, "other words stay as they are"


@pytest.mark.parametrize("columns", ["", "60"])
def test_a_table_never_breaks_the_name_that_people_copy(
    columns: str, edgewise: Callable[..., Any], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert "raspberry-pi-zero-2-w" in edgewise("profiles", "list").out


def test_an_unreachable_server_is_exit_status_3(fleet: Any, edgewise: Callable[..., Any]) -> None:
    assert edgewise("status", "--server", "http://127.0.0.1:1").status == 3


def test_an_answer_that_is_not_json_is_exit_status_3(
    fleet: Any, edgewise: Callable[..., Any], monkeypatch: Any
) -> None:
    monkeypatch.setattr(fleet, "serve", lambda *_: (200, b"<html>"))
    assert edgewise("status").status == 3


def test_a_busy_server_is_asked_again_a_bounded_number_of_times(fleet: Any, edgewise: Callable[..., Any]) -> None:
    fleet.answers = {("GET", "/status"): (503, {"detail": "busy"})}
    assert edgewise("status").status == 3
    assert fleet.asked.count(("GET", "/status")) == 4


def test_a_post_is_never_repeated(fleet: Any, edgewise: Callable[..., Any]) -> None:
    fleet.answers = {("POST", "/rollouts"): (503, {"detail": "busy"})}
    assert edgewise("rollout", "start", "digits", "1").status == 3
    assert fleet.asked.count(("POST", "/rollouts")) == 1


MORE_WRONG = [
    ("status", "--server", "localhost:8470"),
    ("group", "create", "k\u00fcche", "--server", "http://127.0.0.1:1"),
]


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("rollout", "start"),
        ("rollout", "start", "m", "one"),
        ("status", "--login", "nobody"),
        *MORE_WRONG,
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_status_2(
    arguments: tuple[str, ...], edgewise: Callable[..., Any], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEWISE_CONFIG", str(tmp_path / "c.toml"))
    assert edgewise(*arguments).status == 2


def test_missing_files_are_exit_status_9(edgewise: Callable[..., Any], tmp_path: Path) -> None:
    done = edgewise("keys", "init", tmp_path / "k", "--online", tmp_path / "none.json", "--channel", "lab")
    assert done.status == 9
    assert edgewise("convert", tmp_path / "none", "--version", "1", "-p", "x86-64").status == 9


def test_a_part_that_is_not_installed_is_named(edgewise: Callable[..., Any], monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "edgewise_trainer.config", None)
    done = edgewise("train", tmp_path / "x.toml")
    assert done.status == Exit.NOT_INSTALLED
    assert "edgewise[trainer]" in done.err


def test_login_keeps_the_token_for_its_owner(
    fleet: Any, edgewise: Callable[..., Any], monkeypatch: Any, tmp_path: Path
) -> None:
    fleet.answers = dict(ANSWERS)
    path = tmp_path / "config.toml"
    monkeypatch.setenv("EDGEWISE_CONFIG", str(path))
    assert edgewise("login").status == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_profiles(path)["default"].token == fleet.token
    monkeypatch.delenv("EDGEWISE_TOKEN")
    monkeypatch.delenv("EDGEWISE_SERVER")
    assert edgewise("status").status == 0


def test_a_wrong_token_is_not_saved(fleet: Any, edgewise: Callable[..., Any], monkeypatch: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("EDGEWISE_CONFIG", str(path))
    assert edgewise("login", "--token", "ew_wrong").status == 4
    assert not path.exists()


def test_pages_of_devices_are_joined(fleet: Any, edgewise: Callable[..., Any], monkeypatch: Any) -> None:
    serve = fleet.serve

    def pages(method: str, target: str, body: bytes) -> tuple[int, bytes]:
        if "/devices" not in target:
            return serve(method, target, body)  # type: ignore[no-any-return]
        first = "after=a" not in target
        item = {**DEVICE, "id": "a" if first else "b"}
        return 200, json.dumps({"items": [item], "next": "a" if first else None}).encode()

    monkeypatch.setattr(fleet, "serve", pages)
    assert [d["id"] for d in edgewise("device", "list", "--json").document["devices"]] == ["a", "b"]
    assert edgewise("device", "wait", "b", "--timeout", "0").status == 0


@pytest.mark.parametrize(
    ("text", "phase"),
    [
        ("10", {"percent": 10}),
        ("10%", {"percent": 10}),
        ("10:2", {"percent": 10, "min_devices": 2}),
        ("10:2:0.5", {"percent": 10, "min_devices": 2, "soak_s": 0.5}),
    ],
)
def test_phases_are_parsed(text: str, phase: dict[str, Any]) -> None:
    assert parse_phase(text) == phase


@pytest.mark.parametrize("text", ["", "0", "101", "x", "1:2:3:4", "1:x"])
def test_phases_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_phase(text)


def test_the_shell_completes_commands() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("edgewise")],
        env={
            "PATH": "/usr/bin:/bin",
            "_EDGEWISE_COMPLETE": "complete_bash",
            "COMP_WORDS": "edgewise roll",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "rollout" in done.stdout
