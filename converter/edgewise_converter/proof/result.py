"""What a proof found, and what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from edgewise_protocol.golden import compare
from edgewise_protocol.manifest import Golden, Proof
from numpy.typing import NDArray

from edgewise_converter.errors import ProofMissingError

Mode = Literal["auto", "always", "never"]
HOST: Final = "host"


class OutputError(msgspec.Struct, frozen=True, kw_only=True):
    """One output's largest difference from the golden one, and what it may be."""

    output: str
    max_abs_error: float
    atol: float
    rtol: float
    outside: float
    """Share of elements outside of the tolerance."""


class ProofResult(msgspec.Struct, frozen=True, kw_only=True):
    """Golden inputs, run once."""

    profile: str
    """What was stood for; `host` where the host stood for itself."""
    proof: Proof
    passed: bool
    reason: str = ""
    """Why not."""
    samples: int
    top1: float = 0.0
    """Share of samples with the golden arg-max; 1 for outputs of one value."""
    outputs: tuple[OutputError, ...] = ()
    """Empty where the engine gave none."""
    seconds: float = 0.0
    """Of the whole run; says nothing of latency."""
    log: str = ""
    """The end of what the engine printed."""

    @property
    def where(self) -> str:
        """In words."""
        return f"emulated {self.proof.cpu}" if self.proof.emulated else self.proof.cpu


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """All proofs of a bundle on its profile's instruction set."""

    results: tuple[ProofResult, ...] = ()
    why_not: str = ""
    """Why it was not proven, and what to type to have it proven; empty where it was."""

    @property
    def passed(self) -> bool:
        """Whether it was proven, and nothing differs."""
        return bool(self.results) and not self.why_not and all(result.passed for result in self.results)

    @property
    def proofs(self) -> tuple[Proof, ...]:
        """What the manifest says."""
        return tuple(result.proof for result in self.results if result.passed)

    @property
    def failures(self) -> str:
        """What differs, in words; empty where nothing does."""
        return "; ".join(f"on {r.where}: {r.reason}" for r in self.results if not r.passed)


def judge(
    profile: str,
    proof: Proof,
    rule: Golden,
    expected: Mapping[str, NDArray[Any]],
    got: Mapping[str, NDArray[Any]],
    *,
    seconds: float,
    log: str,
) -> ProofResult:
    """Hold outputs (samples, ...) against the golden ones, by the bundle's own rule."""
    found = compare(rule, expected, got)
    outputs = []
    for name, want in expected.items():
        alone = compare(rule, {name: want}, got)
        atol, rtol = rule.tolerance(name)
        outputs.append(
            OutputError(output=name, max_abs_error=alone.max_abs_error, atol=atol, rtol=rtol, outside=alone.outliers)
        )
    return ProofResult(
        profile=profile,
        proof=proof,
        passed=found.passed,
        reason=found.reason,
        samples=rule.samples,
        top1=found.top1,
        outputs=tuple(outputs),
        seconds=round(seconds, 2),
        log=log,
    )


def hold(verdict: Verdict, mode: Mode, what: str) -> None:
    """Refuse a bundle that a mode does not let out.

    Args:
        verdict: what was found.
        mode: `auto` refuses what failed, `always` also what was not proven, `never` nothing.
        what: the bundle, in words.

    Raises:
        ProofMissingError: it is refused; the message says why, and what to do.
    """
    if mode == "never":
        return
    if verdict.failures:
        raise ProofMissingError(f"{what} does not answer as it should {verdict.failures}")
    if mode == "always" and not verdict.passed:
        raise ProofMissingError(f"{what} was not run on the target's instruction set: {verdict.why_not}")
