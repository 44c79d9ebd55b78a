"""What the broker is to retain: one row a topic, in the order of publication."""

from __future__ import annotations

from typing import ClassVar

from sqlmodel import Field

from edgewise_server.models.base import Table


class Outgoing(Table, table=True):
    """A retained topic. Its payload stands here, or is chunk `chunk` of the blob `blob_sha256`.

    `id` gives the order; a topic that changes gets a new row with a new id. `mark` numbers the publications: None
    is still to be published. A `cleared` row stays for a while after its empty message, so that a broker that
    comes back with an older state is cleared again.
    """

    __tablename__ = "outgoing"
    __table_args__: ClassVar[dict[str, bool]] = {"sqlite_autoincrement": True}

    id: int | None = Field(default=None, primary_key=True)
    topic: str = Field(max_length=512, unique=True)
    payload: bytes | None = None
    blob_sha256: str | None = Field(default=None, max_length=64, index=True)
    chunk: int | None = None
    length: int = 0
    cleared: bool = False
    mark: int | None = Field(default=None, index=True)
    changed_at: float = 0.0


class BrokerState(Table, table=True):
    """What the broker at the other end was last known to hold; one row."""

    __tablename__ = "broker_state"

    id: int = Field(default=1, primary_key=True)
    instance: str = Field(max_length=64)
    """Random id of this database; a broker that does not retain it has lost its state, or belongs to another."""
    mark: int = 0
    """Newest publication that the broker acknowledged."""
