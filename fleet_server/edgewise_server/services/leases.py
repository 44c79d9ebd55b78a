"""Leases: at most one process moves a thing forward, and another takes over when it dies.

Taken and checked in the transaction that does the work: a process that has lost its lease cannot commit.
"""

from __future__ import annotations

import os
import secrets
import socket

from sqlmodel import Session, col, delete

from edgewise_server.db import hold_lock
from edgewise_server.errors import ServerError
from edgewise_server.models.leases import Lease


class LeaseLostError(ServerError):
    """Another process holds the lease."""

    code = "lease-lost"


def new_holder() -> str:
    """A name for this holder: host, process and a random part."""
    return f"{socket.gethostname()[:32]}:{os.getpid()}:{secrets.token_hex(6)}"


def hold(session: Session, name: str, holder: str, now: float, seconds: float) -> None:
    """Take or prolong a lease: at least half of `seconds` are left of it afterwards.

    Raises:
        LeaseLostError: another holder has it, and its time is not over.
    """
    hold_lock(session, f"lease:{name}")
    lease = session.get(Lease, name)
    if lease is None:
        session.add(Lease(name=name, holder=holder, expires_at=now + seconds))
    elif lease.holder == holder and lease.expires_at - now > seconds / 2:
        return
    elif lease.holder == holder or lease.expires_at <= now or _has_died(lease.holder):
        lease.holder, lease.expires_at = holder, now + seconds
    else:
        raise LeaseLostError(f"{name} is moved forward by {lease.holder}")
    session.flush()


def is_held(session: Session, name: str, now: float) -> bool:
    """Whether somebody who may be alive has the lease."""
    lease = session.get(Lease, name, populate_existing=True)
    return lease is not None and lease.expires_at > now and not _has_died(lease.holder)


def release(session: Session, name: str, holder: str) -> None:
    """Give a lease back, if this holder has it."""
    session.exec(delete(Lease).where(col(Lease.name) == name, col(Lease.holder) == holder))


def _has_died(holder: str) -> bool:
    """Whether the holder was a process of this host that is gone; then nobody need wait for its lease to end."""
    host, _, rest = holder.partition(":")
    pid = rest.partition(":")[0]
    if host != socket.gethostname()[:32] or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
