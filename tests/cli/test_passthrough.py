"""Danger: `edgewise server` that eats options, hides the exit status, or fails without a word where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from edgewise_cli import config
from edgewise_cli.client import Client
from edgewise_cli.commands import passthrough
from edgewise_cli.config import Connection
from edgewise_cli.errors import Exit, NotInstalledError, UsageError


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgewise_cli", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def test_arguments_output_and_exit_status_are_the_servers(tmp_path: Path) -> None:
    done = run("server", "init", "--state", str(tmp_path / "s"), "--broker", "mosquitto", "--broker-host", "a.example")
    assert done.returncode == 0, done.stderr
    assert "admin token" in done.stdout and (tmp_path / "s" / "broker" / "mosquitto.conf").exists()
    assert run("server", "run", "--state", str(tmp_path / "nowhere")).returncode == 1
    assert run("server", "--nonsense").returncode == 2
    help_text = run("server", "--help")
    assert help_text.returncode == 0 and "edgewise-server" in help_text.stdout


def test_where_it_is_not_installed_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotInstalledError, match="edgewise\\[server\\]") as found:
        passthrough.hand_over(["run"])
    assert found.value.exit == Exit.NOT_INSTALLED == 8


def test_the_authority_of_the_server_comes_from_flag_environment_and_profile(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    environ = {"EDGEWISE_CONFIG": str(path)}
    config.save_profile(path, "default", Connection("https://a", "t", "/etc/ca.pem"))
    config.save_profile(path, "plain", Connection("http://b", "t"))
    assert config.load_profiles(path) == {
        "default": Connection("https://a", "t", "/etc/ca.pem"),
        "plain": Connection("http://b", "t"),
    }
    assert config.resolve(None, None, None, environ).ca_file == "/etc/ca.pem"
    environ["EDGEWISE_CA_FILE"] = "/env.pem"
    assert config.resolve(None, None, None, environ).ca_file == "/env.pem"
    assert config.resolve(None, None, None, environ, ca_file="/flag.pem").ca_file == "/flag.pem"


def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    for name in ("none.pem", "junk.pem"):
        with pytest.raises(UsageError, match=name):
            Client(Connection("https://a", "t", str(tmp_path / name)))
