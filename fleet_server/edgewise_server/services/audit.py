"""The audit log: what was changed, by whom. Written in the transaction that changes it."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, select

from edgewise_server.models.access import AuditEntry


def record(session: Session, actor: str, action: str, subject: str, detail: dict[str, Any] | None = None) -> None:
    """Add an entry; secrets have no place in `detail`."""
    session.add(AuditEntry(actor=actor[:80], action=action, subject=subject[:300], detail=detail or {}))


def newest(session: Session, limit: int) -> list[AuditEntry]:
    """The newest entries, newest first."""
    return list(session.exec(select(AuditEntry).order_by(col(AuditEntry.id).desc()).limit(limit)))
