"""What a conversion ends with, for one profile. Light: it is read from the cache without any engine."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from edgewise_protocol.manifest import Proof

from edgewise_converter.search.result import SearchResult

ACCURACY: Final = "top1"
"""The metric that people call accuracy."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle, or why there is none."""

    model: str
    version: int
    profile: str
    passed: bool
    path: str = ""
    """Of the bundle; empty where nothing was within the budgets."""
    sha256: str = ""
    size_bytes: int = 0
    """Of the bundle."""
    model_size_bytes: int = 0
    engine: str = ""
    engine_version: str = ""
    format: str = ""
    precision: str = ""
    proofs: tuple[Proof, ...] = ()
    unproven: str = ""
    """Why the bundle was not run on the target's instruction set, and what to do; empty where it was."""
    search: SearchResult
    created_at: str
    """When it was first made, UTC, ISO 8601."""
    cached: bool = False
    """Whether it is a repeat of an unchanged conversion."""

    def document(self) -> dict[str, Any]:
        """As `--json` prints it and the report holds it, with the winner's figures at the top level too."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        if not self.passed:
            return found
        row = self.search.winning
        if row.score is not None:
            found["agreement"] = row.score.agreement
            if row.score.name == ACCURACY:
                found |= {"accuracy": row.score.value, "accuracy_float": row.score.float_value}
        return found | {"latency_ms": row.latency_ms, "latency_binding": self.search.latency_binding}


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A conversion's whole result in the cache."""

    outcome: Outcome
    bundle: bytes
    reports: dict[str, bytes] = {}
    """Suffix to bytes: what stands beside the bundle."""


def encode_outcome(outcome: Outcome) -> bytes:
    """The report beside the bundle, JSON."""
    return msgspec.json.format(msgspec.json.encode(outcome.document(), order="sorted"), indent=1) + b"\n"
