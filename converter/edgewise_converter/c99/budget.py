"""What a firmware takes, held against what its board's profile allows. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from edgewise_profiles.mcu import Mcu

from edgewise_converter.errors import PassError

_KIB: Final = 1024


class FirmwareBudgetError(PassError):
    """A firmware takes more flash, memory or stack than its board's profile allows; the message says how much more."""

    code = "firmware-budget"


class Figure(NamedTuple):
    """One figure of a firmware and its bound, bytes."""

    name: str
    measured: int
    allowed: int

    @property
    def passed(self) -> bool:
        """Whether the bound holds."""
        return self.measured <= self.allowed

    def __str__(self) -> str:
        return f"{self.name} {self.measured / _KIB:.1f} of {self.allowed / _KIB:g} KiB"


def figures(mcu: Mcu, *, flash: int, ram: int, arena: int, stack: int | None) -> tuple[Figure, ...]:
    """Every figure that a profile bounds.

    Args:
        mcu: whose bounds they are.
        flash: code, constants and initial values, bytes.
        ram: static memory with the arena and the reserved stack, bytes.
        arena: of the model, bytes; a part of `ram`.
        stack: its measured peak, bytes; None where it was not measured.
    """
    found = [
        Figure("flash", flash, mcu.flash_kib * _KIB),
        Figure("memory", ram, mcu.ram_kib * _KIB),
        Figure("arena", arena, (mcu.ram_kib - mcu.stack_kib) * _KIB),
    ]
    return (*found, *([] if stack is None else [Figure("stack", stack, mcu.stack_kib * _KIB)]))


def hold(board: str, found: tuple[Figure, ...]) -> None:
    """Raise `FirmwareBudgetError` unless every bound holds."""
    missed = [str(figure) for figure in found if not figure.passed]
    if missed:
        raise FirmwareBudgetError(
            f"the firmware does not go onto {board}: {', '.join(missed)}; use a smaller model, or another board"
        )
