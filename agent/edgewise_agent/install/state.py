"""The installer's durable state: one record per model, and the accepted assignment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
from edgewise_protocol.bounds import MAX_MODELS
from edgewise_protocol.deployment import DeploymentState
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import Name, Sha256, Version, check_major
from edgewise_protocol.targets import SignedFile
from msgspec import Meta

from edgewise_agent.durable import write_atomic
from edgewise_agent.errors import StateError

_MAX_BYTES: Final = 4 * 1024 * 1024


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle in the store."""

    sha256: Sha256
    version: Version


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """What the device does with one model. The rules are those of `edgewise_agent.install.table`."""

    model: Name
    state: DeploymentState = "idle"
    since: float = 0.0
    """Epoch seconds of the last change of `state`."""
    active: Slot | None = None
    """What serves, or is about to. Confirmed, except in probation."""
    previous: Slot | None = None
    """What to fall back to: the last confirmed bundle before `active`."""
    target: SignedFile | None = None
    """What the assignment named that `state` speaks of."""
    assignment_version: int = 0
    deployment: str = "none"
    confirm_by: float = 0.0
    """Epoch seconds: an unconfirmed target reverts by itself then."""
    confirm_within_s: float = 0.0
    boots: int = 0
    """Starts of the process since it last ran well or was stopped in order."""
    error_code: str = ""
    error: str = ""
    self_test: dict[str, float] = {}


class InstallState(msgspec.Struct, frozen=True, kw_only=True):
    spec_version: str = "1.0"
    assignment_version: int = 0
    """Newest assignment accepted; an older one never is."""
    deployment: str = "none"
    models: Annotated[dict[str, ModelState], Meta(max_length=MAX_MODELS)] = {}
    error_code: str = ""
    """Why the newest assignment was refused, if it was."""
    error: str = ""

    def with_model(self, model: ModelState) -> InstallState:
        return msgspec.structs.replace(self, models={**self.models, model.model: model})

    def without_model(self, name: str) -> InstallState:
        return msgspec.structs.replace(self, models={n: m for n, m in self.models.items() if n != name})

    def referenced(self) -> frozenset[str]:
        """Digests of the bundles that must stay in the store."""
        found: set[str] = set()
        for model in self.models.values():
            found |= {slot.sha256 for slot in (model.active, model.previous) if slot}
            if model.target and model.state not in ("failed", "rolled_back"):
                found.add(model.target.sha256)
        return frozenset(found)


def load_state(path: Path) -> InstallState:
    """Read the state; a missing file is a fresh device.

    Raises:
        StateError: it cannot be read, which the agent must not take for a fresh device.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise StateError(f"{path.name} is larger than {_MAX_BYTES} bytes")
        state = msgspec.json.decode(path.read_bytes(), type=InstallState)
        check_major(state.spec_version)
    except FileNotFoundError:
        return InstallState()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ProtocolError) as error:
        raise StateError(f"{path.name} is unreadable: {error}") from error
    return state


def save_state(path: Path, state: InstallState) -> None:
    """Replace the state durably; raises `StorageError`."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(state), indent=1))
