"""What of the outbox is on its way. Pure.

The outbox keeps a message until the server says that it is stored; a PUBACK is not storage.
So that a slow or absent server is not flooded, at most `limit` messages are unacknowledged,
and they are sent again after a reconnection, or when nothing was acknowledged for `resend_s`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Window:
    limit: int
    resend_s: float
    acknowledged: int = 0
    """Highest sequence that the server has stored."""
    sent: int = 0
    """Highest sequence that was published on the present connection."""
    ever_sent: int = 0
    """Highest sequence that was published on any connection of this process."""
    progress_at: float = 0.0
    """Monotonic seconds of the last acknowledgement or first unacknowledged publication."""

    def connected(self) -> Window:
        """A new connection: nothing is on its way."""
        return replace(self, sent=self.acknowledged)

    def published(self, seq: int, now: float) -> Window:
        nothing_before = self.sent <= self.acknowledged
        return replace(
            self,
            sent=max(self.sent, seq),
            ever_sent=max(self.ever_sent, seq),
            progress_at=now if nothing_before else self.progress_at,
        )

    def stored(self, through: int, now: float) -> Window:
        """The server has stored everything up to `through`; what this process never sent it cannot have stored."""
        through = min(through, self.ever_sent)
        if through <= self.acknowledged:
            return self
        return replace(self, acknowledged=through, sent=max(self.sent, through), progress_at=now)

    def room(self) -> int:
        """How many more sequences may be sent now."""
        return max(0, self.limit - (self.sent - self.acknowledged))

    def resend_in(self, now: float) -> float | None:
        """Seconds until what is on its way is sent again; None if nothing is."""
        if self.sent <= self.acknowledged:
            return None
        return max(0.0, self.progress_at + self.resend_s - now)
