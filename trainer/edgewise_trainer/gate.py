"""The acceptance gate: pure functions from figures and bounds to a verdict with its reasons."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from edgewise_trainer.comparison import PairedComparison
from edgewise_trainer.config import FederationSection, GateSection
from edgewise_trainer.evaluation import Evaluation


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One figure held against its bound."""

    name: str
    value: float
    bound: float
    passed: bool


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict. A gate without checks passes: nothing was asked."""

    passed: bool
    checks: tuple[Check, ...]


def check(name: str, value: float, direction: Literal["at least", "at most"], bound: float) -> Check:
    """Hold a figure against a bound, inclusively. A figure that is not a number never passes."""
    passed = value >= bound if direction == "at least" else value <= bound
    return Check(name=name, value=value, bound=bound, passed=passed and not math.isnan(value))


def verdict(*checks: Check) -> Gate:
    """All checks must pass."""
    return Gate(passed=all(c.passed for c in checks), checks=checks)


def judge_run(evaluation: Evaluation, bounds: GateSection) -> Gate:
    """The gate of a trained run, on its held-out data."""
    checks = [check("accuracy", evaluation.accuracy, "at least", bounds.min_accuracy)]
    if bounds.min_class_accuracy > 0:
        checks.append(
            check("worst_class_accuracy", evaluation.worst_class_accuracy, "at least", bounds.min_class_accuracy)
        )
    if bounds.max_loss is not None:
        checks.append(check("loss", evaluation.loss, "at most", bounds.max_loss))
    return verdict(*checks)


def judge_aggregate(domain: PairedComparison, base: PairedComparison, bounds: FederationSection) -> Gate:
    """The gate of a federated aggregate against its parent.

    Args:
        domain: parent (old) against aggregate (new) on the devices' held-out samples.
        base: the same on the base domain's.
        bounds: `[federation]`.
    """
    checks = [
        check("gain", domain.gain, "at least", bounds.min_gain),
        check("base_drop", -base.gain, "at most", bounds.max_base_drop),
    ]
    if bounds.max_p is not None:
        checks.append(check("mcnemar_p", domain.p_value, "at most", bounds.max_p))
    return verdict(*checks)
