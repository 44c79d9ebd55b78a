"""What subcommands share: the `--state` flag, and the settings of a command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from edgewise_agent.config import AgentConfig, load_config


def add_state(command: argparse.ArgumentParser) -> None:
    """Add the flag that names the state folder."""
    command.add_argument("--state", type=Path, required=True, metavar="DIR", help="this device's state folder")


def config_of(given: argparse.Namespace) -> AgentConfig:
    """The settings of the state folder, the environment and the flags; raises `ConfigError`."""
    flags = {"http_port": getattr(given, "http_port", None), "train_data": getattr(given, "train_data", None)}
    return load_config(given.state, os.environ, {name: value for name, value in flags.items() if value is not None})
