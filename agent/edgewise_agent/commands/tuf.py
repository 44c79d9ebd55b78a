"""`edgewise-agent tuf`: the agent's trust code as a plain TUF client over HTTP.

It follows the client contract of the TUF project's conformance suite (CLIENT-CLI.md there):
`--metadata-dir DIR [--metadata-url URL] init ROOT | refresh | download`, exit status 0 when all of it
succeeded and 1 otherwise. Metadata are kept in DIR under names without a version.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from edgewise_protocol.bounds import MAX_ROOT_BYTES
from edgewise_protocol.errors import ProtocolError

from edgewise_agent.errors import AgentError, ConfigError, StorageError, TrustError, code_of

_ROOT: Final = "root.json"


class _SystemClock:
    """The system's clock. The persisted floor is the device's, not TUF's: here a test sets the clock at will."""

    def check(self) -> None:
        """Nothing is held against the clock."""

    def prove(self, expires: datetime) -> None:
        """Nothing is remembered of `expires`."""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    command = subparsers.add_parser("tuf", help="a plain TUF client over HTTP, as the TUF conformance suite calls it")
    command.add_argument("--metadata-dir", type=Path, required=True, metavar="DIR", help="trusted metadata")
    command.add_argument("--metadata-url", default="", metavar="URL", help="where the repository's metadata are")
    command.add_argument("--target-name", default="", metavar="PATH", help="target path of what to download")
    command.add_argument("--target-base-url", default="", metavar="URL", help="where the repository's targets are")
    command.add_argument("--target-dir", type=Path, metavar="DIR", help="where downloads are kept")
    actions = command.add_subparsers(dest="action", required=True)
    init = actions.add_parser("init", help="trust this root metadata")
    init.add_argument("trusted_root", type=Path, metavar="TRUSTED_ROOT")
    init.set_defaults(tuf=_init)
    actions.add_parser("refresh", help="bring the metadata up to date").set_defaults(tuf=_refresh)
    actions.add_parser("download", help="refresh, then download one target").set_defaults(tuf=_download)
    command.set_defaults(act=_act)


def _act(given: argparse.Namespace) -> int:
    """The contract knows 0 and 1 only, whatever the cause."""
    try:
        given.tuf(given)
    except (AgentError, ProtocolError) as error:
        print(f"edgewise-agent: {code_of(error)}: {error}", file=sys.stderr)
        return 1
    return 0


def _init(given: argparse.Namespace) -> None:
    from edgewise_agent.durable import write_atomic

    try:
        given.metadata_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{given.metadata_dir} cannot be made: {error.strerror}") from error
    write_atomic(given.metadata_dir / _ROOT, _root(given.trusted_root))


def _refresh(given: argparse.Namespace) -> Any:
    from edgewise_agent.trust.http_fetcher import HttpFetcher
    from edgewise_agent.trust.repository import Repository

    _need(given, "metadata_url")
    bootstrap = _root(given.metadata_dir / _ROOT)
    repository = Repository(given.metadata_dir, bootstrap, HttpFetcher(), _SystemClock(), base_url=given.metadata_url)
    repository.refresh()
    return repository


def _download(given: argparse.Namespace) -> None:
    _need(given, "target_name", "target_base_url", "target_dir")
    path = _refresh(given).download(given.target_name, given.target_base_url, given.target_dir)
    print(path)


def _root(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ROOT_BYTES + 1)
    except OSError as error:
        raise StorageError(f"the trusted root {path} cannot be read: {error.strerror}; run `init` first") from error
    if len(data) > MAX_ROOT_BYTES:
        raise TrustError(f"the trusted root {path} has more than {MAX_ROOT_BYTES} bytes")
    return data


def _need(given: argparse.Namespace, *names: str) -> None:
    for name in names:
        if not getattr(given, name):
            raise ConfigError(f"--{name.replace('_', '-')} is needed for `{given.action}`")
