"""The installer's durable state: one record per model, and the accepted assignment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
from edgewise_protocol.assignment import Accepted, Assignment
from edgewise_protocol.bounds import MAX_MODELS
from edgewise_protocol.deployment import DeploymentState
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import Name, Sha256, Version, check_major
from edgewise_protocol.targets import SignedFile
from msgspec import Meta

from edgewise_agent.errors import StateDamagedError, StateError
from edgewise_agent.twin import TwinFile

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
    mended: int = 0
    """Downloads of the target again, because the disk damaged the stored one, since it was last confirmed."""
    error_code: str = ""
    error: str = ""
    self_test: dict[str, float] = {}


class InstallState(msgspec.Struct, frozen=True, kw_only=True):
    spec_version: str = "1.0"
    assignment_version: int = 0
    """Newest assignment accepted; an older one never is."""
    assignment_keys: str = ""
    """Digest of the director's keys that signed it: other keys begin anew. Empty in files of older agents."""
    deployment: str = "none"
    models: Annotated[dict[str, ModelState], Meta(max_length=MAX_MODELS)] = {}
    error_code: str = ""
    """Why the newest assignment was refused, if it was."""
    error: str = ""
    loading: str = ""
    """The model that the engine is loading while the agent starts: if the process dies now, this one is the cause."""

    @property
    def accepted(self) -> Accepted:
        return Accepted(self.assignment_version, self.assignment_keys)

    def accept(self, assignment: Assignment, code: str = "", text: str = "") -> InstallState:
        """Remember an assignment, and what is wrong all the same.

        Under new keys of the director no earlier version means anything, not even to R3.
        """
        models = self.models
        if self.accepted.under(assignment.keys) != self.accepted:
            models = {name: msgspec.structs.replace(m, assignment_version=0) for name, m in models.items()}
        return msgspec.structs.replace(
            self,
            assignment_version=assignment.version,
            assignment_keys=assignment.keys,
            deployment=assignment.body.deployment,
            models=models,
            error_code=code,
            error=text,
        )

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
    """Read the state, and change nothing; a missing file is a fresh device.

    Raises:
        StateError: no copy of it is whole, or a newer agent wrote it.
    """
    state, problem = _twin(path).read(_parse)
    if state is None and problem:
        raise StateError(f"the state cannot be read: {problem}")
    return state or InstallState()


def recover_state(path: Path) -> tuple[InstallState, str]:
    """Read the state for the agent that owns it: what is damaged is set aside and said, never taken for nothing.

    The state holds the newest assignment's version, below which no assignment is accepted. Losing
    it in silence would let anybody who holds an older assignment put the device back. Therefore:

    - Both copies are sealed with their digest, so that a flipped bit in the version is damage
      and not another version. The second copy is written before anything is done about the
      first, so that with one copy damaged the other holds all that was ever acted on: nothing is lost.
    - With both copies damaged the version is lost for good. Refusing to run would lose the device
      as well, on every disk that failed. It begins anew instead: nothing serves, since nobody
      knows which bundle was confirmed; everything is verified and tested again; and the loss is
      reported as `state-damaged` until an assignment is accepted, and as a security event. What a
      replayed assignment could do meanwhile is bounded by what else must hold: the director's
      signature for this device, the assignment's own expiry (days), the floors in the
      offline-signed metadata, and the versions of those metadata, which are kept elsewhere.

    Returns:
        the state, and what was wrong in words; empty if nothing was.

    Raises:
        StateError: a newer agent wrote it.
        StorageError: a damaged copy cannot be set aside.
    """
    twin = _twin(path)
    state, problem = twin.read(_parse)
    if not problem:
        return state or InstallState(), ""
    twin.set_aside(_parse)
    if state is not None:
        return state, f"{problem}; the other copy is used, and nothing is lost"
    text = (
        f"{problem}: which bundles were confirmed and the newest assignment's version are lost; "
        "nothing serves until an assignment is accepted"
    )
    return InstallState(error_code=StateDamagedError.code, error=text), text


def save_state(path: Path, state: InstallState) -> None:
    """Replace the state durably; raises `StorageError`."""
    _twin(path).write(msgspec.json.format(msgspec.json.encode(state), indent=1))


def _twin(path: Path) -> TwinFile:
    return TwinFile(path, _MAX_BYTES)


def _parse(data: bytes) -> InstallState:
    try:
        state = msgspec.json.decode(data, type=InstallState)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    try:
        check_major(state.spec_version)
    except ProtocolError as error:
        # Whole, but not ours to read: setting it aside would lose what a newer agent knew.
        raise StateError(f"the state was written by a newer agent: {error}") from error
    return state
