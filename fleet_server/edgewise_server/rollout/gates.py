"""Whether the exposed devices' evidence breaks one of a plan's gates. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise_server.rollout.facts import DeviceFact, Exposure
from edgewise_server.rollout.plan import Gates


def breach(gates: Gates, devices: Sequence[DeviceFact], gates_from: float) -> str | None:
    """The first gate that is broken, as a sentence; None if none is.

    Args:
        devices: the rollout's devices; only exposed ones count.
        gates_from: outcomes that became known at or before it are not counted.
    """
    exposed = [d.exposure for d in devices if d.exposure is not None and not d.held]
    counted = [e for e in exposed if e.ended_at is None or e.ended_at > gates_from]
    return _failures(gates, counted) or _errors(gates, counted) or _latency(gates, counted) or _drift(gates, counted)


def _failures(gates: Gates, exposed: Sequence[Exposure]) -> str | None:
    ended = [e for e in exposed if e.outcome != "pending"]
    failed = sum(e.outcome == "failed" for e in ended)
    if not ended or failed / len(ended) <= gates.max_failed_ratio:
        return None
    return f"{failed} of {len(ended)} devices failed to commit the version; at most {gates.max_failed_ratio:.0%} may"


def _errors(gates: Gates, exposed: Sequence[Exposure]) -> str | None:
    requests, errors = sum(e.requests for e in exposed), sum(e.errors for e in exposed)
    if requests < max(1, gates.min_requests) or errors / requests <= gates.max_error_ratio:
        return None
    return f"{errors} of {requests} inferences failed; at most {gates.max_error_ratio:.1%} may"


def _latency(gates: Gates, exposed: Sequence[Exposure]) -> str | None:
    if gates.max_p95_ms is None:
        return None
    requests = sum(e.requests for e in exposed)
    if requests < max(1, gates.min_requests):
        return None
    p95 = sum(e.p95_ms * e.requests for e in exposed) / requests
    if p95 <= gates.max_p95_ms:
        return None
    return f"the 95th percentile of latency is {p95:.1f} ms; at most {gates.max_p95_ms:.1f} is allowed"


def _drift(gates: Gates, exposed: Sequence[Exposure]) -> str | None:
    alerts = sum(e.drift_alerts for e in exposed)
    if gates.max_drift_alerts is None or alerts <= gates.max_drift_alerts:
        return None
    return f"{alerts} drift alerts are open on the version; at most {gates.max_drift_alerts} may be"
