"""The update of one model as a transition table. No I/O.

    idle → downloading → verifying → staged → self_test → probation → committed | rolled_back
                 any of the first five may end in failed

`TABLE` has a row for every state and event; an event that cannot concern a state is ignored
by name. The new state is persisted before its effects are carried out; `Booted` derives, for
every state, the effects that a crash may have cut off. What holds in every state:

R1. Only a bundle whose digest was verified and whose self-test passed on this device is activated.
R2. Outside of probation, what serves has been confirmed; leaving probation by anything but
    `Confirmed` withdraws the target.
R3. A failed or rolled-back target is not tried again for the same assignment version.
R4. Results of work for another target than the present one change nothing.
R5. A process that keeps dying gives up what it serves last: first for the previous bundle,
    then for none.
R6. A bundle that the disk has damaged does not serve: what was confirmed before it does, or
    nothing, while it is downloaded again, a bounded number of times in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgewise_protocol.deployment import DeploymentState
from edgewise_protocol.targets import SignedFile
from msgspec.structs import replace

from edgewise_agent.errors import StoreDamagedError
from edgewise_agent.install.effects import (
    Activate,
    Cancel,
    Collect,
    Download,
    Effect,
    RequestTurn,
    Restore,
    SelfTest,
    Verify,
    Watch,
)
from edgewise_agent.install.events import (
    Assigned,
    Booted,
    Confirmed,
    Damaged,
    Downloaded,
    Event,
    Expired,
    Failed,
    Fault,
    SelfTestPassed,
    Settled,
    Stopped,
    TurnGranted,
    Unassigned,
    Verified,
)
from edgewise_agent.install.state import ModelState, Slot

DISK_CODES: Final = frozenset({"storage", "disk-space", "disk-full"})
"""Why work fails when nothing is wrong with its target."""
MAX_MENDS: Final = 2
"""Downloads again of one target before the disk is given up."""

Step = tuple[ModelState, tuple[Effect, ...]]
Row = Callable[[ModelState, Event], Step]


def step(state: ModelState, event: Event) -> Step:
    """The next state of a model and what must be done about it."""
    return TABLE[state.state, type(event)](state, event)


def slot_of(file: SignedFile) -> Slot:
    return Slot(sha256=file.sha256, version=file.custom.version)


def _to(state: ModelState, name: DeploymentState, at: float, **changes: object) -> ModelState:
    return replace(state, state=name, since=at, **changes)


def _target(state: ModelState) -> SignedFile:
    if state.target is None:
        raise RuntimeError(f"{state.model}: the state {state.state} has no target")
    return state.target


def _final(state: ModelState) -> bool:
    """Whether the work on the target ended badly for good: a disk that was full may have space again."""
    return state.state in _ENDED_BADLY and not waits_for_disk(state)


def waits_for_disk(state: ModelState) -> bool:
    """Whether only the disk kept the target from being installed."""
    return state.state == "failed" and state.error_code in DISK_CODES


def _concerns(state: ModelState, sha256: str) -> bool:
    return state.target is not None and state.target.sha256 == sha256


# -- rows ------------------------------------------------------------------------------------


def ignore(state: ModelState, _event: Event) -> Step:
    """The event does not concern this state."""
    return state, ()


def assign(state: ModelState, event: Event) -> Step:
    """Take up an assignment's bundle, unless it is what the device has or is working on."""
    if not isinstance(event, Assigned):
        return state, ()
    same = _concerns(state, event.target.sha256)
    named = replace(state, assignment_version=event.assignment_version, deployment=event.deployment)
    if same and state.state in _WORKING | {"committed"} and state.active in (None, slot_of(event.target)):
        return named, ()
    if same and _final(state) and state.assignment_version == event.assignment_version:
        return state, ()  # R3
    effects: tuple[Effect, ...] = ()
    named = replace(named, mended=0)
    if state.state == "probation":  # R2
        named = replace(named, active=state.previous, previous=None)
        effects = (Restore(state.previous),)
    named = replace(named, target=event.target, error_code="", error="", self_test={})
    if named.active == slot_of(event.target):
        return _to(named, "committed", event.at), (*effects, Cancel(), Collect())
    named = replace(
        named, confirm_by=event.at + event.confirm_within_s, confirm_within_s=event.confirm_within_s, boots=0
    )
    if event.installed:
        return _to(named, "staged", event.at), (*effects, RequestTurn(event.target.sha256))
    return _to(named, "downloading", event.at), (*effects, Download(event.target))


def remove(state: ModelState, event: Event) -> Step:
    """The assignment no longer names the model."""
    return ModelState(model=state.model, since=event.at), (Cancel(), Restore(None), Collect())


def downloaded(state: ModelState, event: Event) -> Step:
    if not (isinstance(event, Downloaded) and _concerns(state, event.sha256)):
        return state, ()  # R4
    return _to(state, "verifying", event.at), (Verify(_target(state)),)


def verified(state: ModelState, event: Event) -> Step:
    if not (isinstance(event, Verified) and _concerns(state, event.sha256)):
        return state, ()
    return _to(state, "staged", event.at), (RequestTurn(event.sha256),)


def granted(state: ModelState, event: Event) -> Step:
    if not (isinstance(event, TurnGranted) and _concerns(state, event.sha256)):
        return state, ()
    return _to(state, "self_test", event.at), (SelfTest(_target(state)),)


def passed(state: ModelState, event: Event) -> Step:
    """Serve the target on probation; what served before stays the fallback."""
    if not (isinstance(event, SelfTestPassed) and _concerns(state, event.sha256)):
        return state, ()
    target = slot_of(_target(state))
    state = _to(
        state, "probation", event.at, active=target, previous=state.active, boots=0, self_test=dict(event.measured)
    )
    return state, (Activate(target), Watch(target.sha256))


def fail(state: ModelState, event: Event) -> Step:
    """Work on the target failed before it served; what serves goes on."""
    match event:
        case Failed(sha256=sha256, code=code, text=text, measured=measured) if _concerns(state, sha256):
            state = _to(state, "failed", event.at, error_code=code, error=text, self_test=dict(measured))
        case Expired(sha256=sha256) if _concerns(state, sha256):
            state = _to(state, "failed", event.at, error_code="confirm-expired", error=_LATE)
        case Failed(sha256=sha256, code=code, text=text) if state.active and state.active.sha256 == sha256:
            return _active_lost(state, code, text)
        case _:
            return state, ()
    return state, (Cancel(), Collect())


def roll_back(state: ModelState, event: Event) -> Step:
    """The target does not hold in service: back to the bundle before it."""
    match event:
        case Failed(sha256=sha256, code=code, text=text) | Fault(sha256=sha256, code=code, text=text):
            pass
        case Expired(sha256=sha256):
            code, text = "confirm-expired", _LATE
        case _:
            return state, ()
    if not _concerns(state, sha256):
        return state, ()
    return _withdraw(state, event.at, code, text)


def commit(state: ModelState, event: Event) -> Step:
    if not (isinstance(event, Confirmed) and _concerns(state, event.sha256)):
        return state, ()
    return _to(state, "committed", event.at, mended=0), (Collect(),)


def mend(state: ModelState, event: Event) -> Step:
    """R6. The target was verified and signed for: fetching it again needs no new decision."""
    if not isinstance(event, Damaged):
        return state, ()
    held = state.active is not None and state.active.sha256 == event.sha256
    if not _concerns(state, event.sha256):
        return _active_lost(state, _DAMAGED, event.text) if held else (state, ())
    effects: tuple[Effect, ...] = ()
    if held:
        state = replace(state, active=state.previous, previous=None)
        effects = (Restore(state.active),)
    if state.mended >= MAX_MENDS:
        state = _to(state, "failed", event.at, boots=0, error_code=_DAMAGED, error=event.text)
        return state, (*effects, Cancel(), Collect())
    state = _to(
        state,
        "downloading",
        event.at,
        boots=0,
        mended=state.mended + 1,
        confirm_by=event.at + state.confirm_within_s,
        error_code=_DAMAGED,
        error=event.text,
    )
    return state, (*effects, Download(_target(state)))


def active_damaged(state: ModelState, event: Event) -> Step:
    """The work on the target has ended badly; what serves instead is damaged."""
    if isinstance(event, Damaged) and state.active is not None and state.active.sha256 == event.sha256:
        return _active_lost(state, _DAMAGED, event.text)
    return state, ()


def active_failed(state: ModelState, event: Event) -> Step:
    """What was confirmed cannot be activated any more, e.g. because the disk damaged it."""
    match event:
        case Failed(sha256=sha256, code=code, text=text) if state.active and state.active.sha256 == sha256:
            if state.state == "committed":
                if state.previous:
                    return _withdraw(state, event.at, code, text)
                return _to(state, "failed", event.at, active=None, error_code=code, error=text), (Collect(),)
            return _active_lost(state, code, text)
        case _:
            return state, ()


def settle(state: ModelState, _event: Event) -> Step:
    """The process runs well, or stops in order: its starts are forgiven."""
    return replace(state, boots=0), ()


def boot(state: ModelState, event: Event) -> Step:
    """The process starts: count it, and carry on where it was cut off."""
    if not isinstance(event, Booted):
        return state, ()
    state = replace(state, boots=state.boots + event.counted)
    if state.active is not None and state.boots > event.max_boots:  # R5
        text = f"the agent died {event.max_boots} times while version {state.active.version} served"
        if state.state in ("probation", "committed"):
            if state.state == "probation" or state.previous:
                return _withdraw(state, event.at, "boot-loop", text)
            return (
                _to(state, "failed", event.at, active=None, boots=0, error_code="boot-loop", error=text),
                (Collect(),),
            )
        state = replace(state, active=state.previous, previous=None, boots=0, error_code="boot-loop", error=text)
    serve: tuple[Effect, ...] = (Activate(state.active),) if state.active else ()
    return state, (*serve, *_resume(state), Collect())


def _resume(state: ModelState) -> tuple[Effect, ...]:
    match state.state:
        case "downloading":
            return (Download(_target(state)),)
        case "verifying":
            return (Verify(_target(state)),)
        case "staged":
            return (RequestTurn(_target(state).sha256),)
        case "self_test":
            return (SelfTest(_target(state)),)
        case "probation":
            return (Watch(_target(state).sha256),)
        case _:
            return ()


def _withdraw(state: ModelState, at: float, code: str, text: str) -> Step:
    back = state.previous
    state = _to(state, "rolled_back", at, active=back, previous=None, boots=0, error_code=code, error=text)
    return state, (Restore(back), Collect())


def _active_lost(state: ModelState, code: str, text: str) -> Step:
    """Fall back without touching the work in progress."""
    back = state.previous
    return replace(state, active=back, previous=None, boots=0, error_code=code, error=text), (Restore(back),)


# -- the table -------------------------------------------------------------------------------

_LATE: Final = "the version was not confirmed in the time that its assignment gives"
_DAMAGED: Final = StoreDamagedError.code
_WORKING: Final = frozenset({"downloading", "verifying", "staged", "self_test", "probation"})
_ENDED_BADLY: Final = frozenset({"failed", "rolled_back"})

_ALWAYS: Final[dict[type[Event], Row]] = {
    Assigned: assign,
    Unassigned: remove,
    Booted: boot,
    Stopped: settle,
    Settled: settle,
    Downloaded: ignore,
    Verified: ignore,
    TurnGranted: ignore,
    SelfTestPassed: ignore,
    Confirmed: ignore,
    Fault: ignore,
    Expired: ignore,
    Failed: ignore,
    Damaged: mend,
}
_BEFORE_SERVICE: Final[dict[type[Event], Row]] = {Failed: fail, Expired: fail}
_ROWS: Final[dict[DeploymentState, dict[type[Event], Row]]] = {
    "idle": {Unassigned: ignore, Damaged: ignore},
    "downloading": {**_BEFORE_SERVICE, Downloaded: downloaded},
    "verifying": {**_BEFORE_SERVICE, Verified: verified},
    "staged": {**_BEFORE_SERVICE, TurnGranted: granted},
    "self_test": {**_BEFORE_SERVICE, SelfTestPassed: passed},
    "probation": {Confirmed: commit, Fault: roll_back, Failed: roll_back, Expired: roll_back, Settled: ignore},
    "committed": {Failed: active_failed},
    "rolled_back": {Failed: active_failed, Damaged: active_damaged},
    "failed": {Failed: active_failed, Damaged: active_damaged},
}
TABLE: Final[dict[tuple[DeploymentState, type[Event]], Row]] = {
    (state, event): row for state, rows in _ROWS.items() for event, row in {**_ALWAYS, **rows}.items()
}
