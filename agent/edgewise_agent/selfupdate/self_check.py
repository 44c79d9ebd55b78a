"""The new agent's process for checking itself: `python -m edgewise_agent.selfupdate.self_check STATE VERSION`.

It runs the new code against the device's present state, which it only reads: requirements, imports, settings,
identity, what is installed, metadata, outbox (a copy), and the golden inputs of every model that serves. It writes
one `Report` on its standard output. Whatever goes wrong here must not cost the running agent anything.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import tempfile
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Final

import msgspec
from edgewise_protocol.errors import ProtocolError
from packaging.requirements import InvalidRequirement, Requirement

from edgewise_agent.errors import AgentError, MetadataUnavailableError, code_of
from edgewise_agent.selfupdate.checking import Report

DISTRIBUTION: Final = "edgewise-agent"
_NICE: Final = 10
_MODULES: Final = (
    "edgewise_agent.__main__",
    "edgewise_agent.app",
    "edgewise_agent.commands.run",
    "edgewise_agent.selfupdate.updater",
)


class _CheckFailedError(AgentError):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def main(arguments: list[str]) -> int:
    """Check, and report; the exit status is 0 whatever was found."""
    state, version = Path(arguments[0]), arguments[1]
    os.nice(_NICE)
    out = os.fdopen(os.dup(1), "wb")
    # What libraries print must not end up in the report.
    os.dup2(2, 1)
    try:
        report = Report(models=check(state, version))
    except (AgentError, ProtocolError) as error:
        report = Report(code=code_of(error), text=str(error)[:1500])
    except Exception as error:  # noqa: BLE001 - whatever the new code does, the running agent is told
        report = Report(code="agent-self-check", text=f"{type(error).__name__}: {error}"[:1500])
    with out:
        out.write(msgspec.json.encode(report))
    return 0


def check(state: Path, version: str) -> int:
    """Check everything; returns the number of models tried.

    Raises:
        AgentError, ProtocolError: with the code of what is wrong.
    """
    site = Path(__file__).resolve().parents[2]
    found = metadata.version(DISTRIBUTION)
    if found != version:
        raise _CheckFailedError("agent-self-check", f"the packages are those of {found}; the bundle says {version}")
    if missing := unmet(site):
        raise _CheckFailedError("agent-requirements", f"the base installation lacks {'; '.join(missing[:8])}")
    for name in _MODULES:
        try:
            import_module(name)
        except Exception as error:
            raise _CheckFailedError("agent-import", f"{name} cannot be imported: {error}") from error
    return _check_state(state)


def unmet(site: Path) -> list[str]:
    """Requirements of the distributions in `site` that nothing on the import path meets."""
    lacking: list[str] = []
    for distribution in metadata.distributions(path=[str(site)]):
        for text in distribution.requires or ():
            try:
                need = Requirement(text)
            except InvalidRequirement:
                lacking.append(f"{text!r}, which is no requirement")
                continue
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            try:
                has = metadata.version(need.name)
            except metadata.PackageNotFoundError:
                lacking.append(f"{need} (not installed)")
                continue
            if not need.specifier.contains(has, prereleases=True):
                lacking.append(f"{need} (installed: {has})")
    return lacking


def _check_state(state: Path) -> int:
    # Not at the top: what cannot be imported is to be reported as such.
    from edgewise_agent.app import INSTALLED_FILE
    from edgewise_agent.config import load_config
    from edgewise_agent.identity.identity import load_identity
    from edgewise_agent.install.state import load_state
    from edgewise_agent.trust.clock import ClockFloor
    from edgewise_agent.trust.http_fetcher import HttpFetcher
    from edgewise_agent.trust.repository import Repository

    config = load_config(state, os.environ, {})
    identity = load_identity(state, datetime.now(UTC))
    clock = ClockFloor(state / "clock", identity.certificate_from.timestamp())
    repository = Repository(state / "metadata", identity.tuf_root, HttpFetcher(), clock)
    with contextlib.suppress(MetadataUnavailableError):  # of a device that has not been online yet
        repository.last_verified()
    _check_outbox(state, config.outbox_max_mib << 20)
    installed = load_state(state / INSTALLED_FILE)
    return _check_models(state, installed, config)


def _check_outbox(state: Path, max_bytes: int) -> None:
    from edgewise_agent.observe.outbox import Outbox

    path = state / "outbox.sqlite"
    if not path.exists():
        return
    with tempfile.TemporaryDirectory(prefix="edgewise-check-") as folder:
        copy = Path(folder) / "outbox.sqlite"
        source = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        target = sqlite3.connect(copy)
        try:
            source.backup(target)
        except sqlite3.Error as error:
            raise _CheckFailedError("agent-self-check", f"the outbox cannot be read: {error}") from error
        finally:
            source.close()
            target.close()
        Outbox(copy, max_bytes).close()


def _check_models(state: Path, installed: object, config: object) -> int:
    from edgewise_protocol.manifest import AGENT_MODEL

    from edgewise_agent.config import AgentConfig
    from edgewise_agent.install.self_test import SelfTester
    from edgewise_agent.install.state import InstallState
    from edgewise_agent.store.store import Store

    if not isinstance(installed, InstallState) or not isinstance(config, AgentConfig):
        raise TypeError("settings and state are of other types")
    tester = SelfTester(config.self_test, config.engine_threads, simulated=True, gateway=config.gateway)
    store = Store(state / "store", config.min_free_mib)
    tried = 0
    for model in installed.models.values():
        if model.active is None or model.model == AGENT_MODEL:
            continue
        bundle = store.open(model.active.sha256)
        tester.run(bundle.folder, bundle.manifest, lambda: False)
        tried += 1
    return tried


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
