"""The closed vocabulary of what the transition table may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from edgewise_protocol.targets import SignedFile

from edgewise_agent.install.state import Slot


@dataclass(frozen=True)
class Download:
    """Fetch the target's chunks; ends in `Downloaded` or `Failed`. Replaces the model's work in progress."""

    target: SignedFile


@dataclass(frozen=True)
class Verify:
    """Check the target and put it in the store; ends in `Verified` or `Failed`."""

    target: SignedFile


@dataclass(frozen=True)
class RequestTurn:
    """Ask when to test and activate; ends in `TurnGranted`."""

    sha256: str


@dataclass(frozen=True)
class SelfTest:
    """Try the target in a child process; ends in `SelfTestPassed` or `Failed`."""

    target: SignedFile


@dataclass(frozen=True)
class Activate:
    """Let a slot serve; ends in `Failed` if it cannot."""

    slot: Slot


@dataclass(frozen=True)
class Restore:
    """Let the fallback serve, or nothing. Ends in `Failed` if it cannot."""

    slot: Slot | None


@dataclass(frozen=True)
class Watch:
    """Judge the probation; ends in `Confirmed`, `Fault` or `Expired`."""

    sha256: str


@dataclass(frozen=True)
class Cancel:
    """Give up the model's work in progress."""


@dataclass(frozen=True)
class Collect:
    """Remove from the store what nothing refers to."""


Effect = Download | Verify | RequestTurn | SelfTest | Activate | Restore | Watch | Cancel | Collect
