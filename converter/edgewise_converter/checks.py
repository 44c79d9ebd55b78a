"""Bounds, what was measured against them, and by how much they are missed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One bound, and what was measured against it."""

    name: str
    value: float
    bound: float
    passed: bool
    sense: Literal["at most", "at least"]
    unit: str = ""
    binding: bool = True
    """A check that does not bind is told, and refuses nothing."""

    @property
    def excess(self) -> float:
        """By how much the bound is missed, in the check's unit; 0 where it holds."""
        return max(0.0, self.value - self.bound if self.sense == "at most" else self.bound - self.value)


def at_most(name: str, value: float, bound: float, unit: str = "", *, binding: bool = True) -> Check:
    """A check that a value, which must be a number, does not exceed its bound."""
    return Check(
        name=name, value=value, bound=bound, passed=value <= bound, sense="at most", unit=unit, binding=binding
    )


def at_least(name: str, value: float, bound: float, unit: str = "") -> Check:
    """A check that a value, which must be a number, reaches its bound."""
    return Check(name=name, value=value, bound=bound, passed=value >= bound, sense="at least", unit=unit)


def passes(checks: Sequence[Check]) -> bool:
    """Whether every check that binds holds."""
    return all(check.passed for check in checks if check.binding)


def misses(checks: Sequence[Check]) -> tuple[str, ...]:
    """Each bound that binds and is missed, and by how much."""
    return tuple(_missed(check) for check in checks if check.binding and not check.passed)


def _missed(check: Check) -> str:
    unit = f" {check.unit}" if check.unit else ""
    return (
        f"{check.name} is {_number(check.value)}{unit}, {check.sense} {_number(check.bound)}{unit} are allowed, "
        f"over by {_number(check.excess)}{unit}"
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "not finite"
