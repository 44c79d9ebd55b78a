"""The models: what serves, what went wrong with each, and whether their files are whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgewise_agent.doctor.check import Check, fail, ok, warn
from edgewise_agent.errors import StateError, StoreDamagedError
from edgewise_agent.install.state import InstallState, ModelState, load_state
from edgewise_agent.store.store import Store
from edgewise_agent.words import words_for


@dataclass(frozen=True)
class Installed:
    state: InstallState | None
    problem: str = ""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Digest of each bundle that is not whole, and why."""
    deep: bool = False


def look(state: Path, installed_file: str, *, deep: bool) -> Installed:
    """Read the state; bundles are there, or with `deep` every byte of them is checked."""
    try:
        found = load_state(state / installed_file)
    except StateError as error:
        return Installed(None, str(error))
    damaged: dict[str, str] = {}
    root = state / "store"
    slots = {slot.sha256 for model in found.models.values() for slot in (model.active, model.previous) if slot}
    for sha256 in sorted(slots):
        if not deep:
            if not (root / "bundles" / sha256 / ".record.json").is_file():
                damaged[sha256] = "it is not in the store"
            continue
        try:
            Store(root, 0).open(sha256)
        except StoreDamagedError as error:
            damaged[sha256] = str(error)
    return Installed(found, "", damaged, deep)


def judge(installed: Installed) -> tuple[Check, ...]:
    """Pure."""
    state = installed.state
    if state is None:
        return (fail("models", installed.problem, code="state-damaged"),)
    checks: list[Check] = []
    if state.error_code:
        words = words_for(state.error_code)
        text = f"the newest assignment was refused. {words.meaning} ({state.error})"
        checks.append(fail("assignment", text, code=state.error_code))
    elif state.assignment_version:
        checks.append(ok("assignment", f"version {state.assignment_version}, deployment {state.deployment}"))
    else:
        checks.append(warn("assignment", "none was accepted yet", "roll a model out to this device"))
    checks += [_model(model) for model in state.models.values()]
    checks.append(_store(installed))
    return tuple(checks)


def _model(model: ModelState) -> Check:
    name = "model"
    serves = f"serves version {model.active.version}" if model.active else "serves nothing"
    text = f"{model.model} {serves}; {model.state}"
    target = model.target.custom.version if model.target else 0
    if target and (model.active is None or model.active.version != target):
        text += f" (assigned: version {target})"
    if not model.error_code:
        return ok(name, text) if model.active else warn(name, text, "wait for the installation to end")
    text += f". {words_for(model.error_code).meaning} ({model.error[:300]})"
    found = fail if model.active is None or model.state in ("failed", "rolled_back") else warn
    return found(name, text, code=model.error_code)


def _store(installed: Installed) -> Check:
    if installed.damaged:
        listed = "; ".join(f"{sha256[:12]}: {why}" for sha256, why in list(installed.damaged.items())[:5])
        return fail("store", f"{len(installed.damaged)} stored bundles are damaged: {listed}", code="store-damaged")
    if installed.deep:
        return ok("store", "every byte of the bundles in use is what was verified")
    return ok("store", "the bundles in use are there (--deep checks every byte)")
