"""What can go wrong with the outbox."""

from __future__ import annotations

from edgewise_agent.errors import AgentError


class OutboxError(AgentError):
    """The outbox cannot be opened."""

    code = "outbox"


class OversizeError(OutboxError):
    """A message is longer than the wire takes; it was not put."""

    code = "outbox-oversize"
