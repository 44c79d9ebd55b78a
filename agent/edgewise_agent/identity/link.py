"""Ties the keeper of the identity to the session and to the settings."""

from __future__ import annotations

from collections.abc import Callable

from edgewise_agent.config import IdentityConfig
from edgewise_agent.identity.identity import Identity
from edgewise_agent.identity.keeper import Timing
from edgewise_agent.identity.renewal import Policy
from edgewise_agent.session.shell import Endpoint, Session


class SessionLink:
    """Args:
    session: the connection to the broker.
    endpoint: where and as whom an identity speaks.
    """

    def __init__(self, session: Session, endpoint: Callable[[Identity], Endpoint]) -> None:
        self._session, self._endpoint = session, endpoint

    def use(self, identity: Identity) -> None:
        """Speak with this identity from the next connection on, and begin that connection."""
        self._session.use(self._endpoint(identity))

    def slow_down(self, slow: bool) -> None:
        """Try the broker only after the longest wait, or as often as usual again."""
        self._session.slow_down(slow)


def timing_of(config: IdentityConfig) -> Timing:
    """The keeper's timing by the settings."""
    return Timing(
        look=config.look_s,
        renewal=Policy(
            minimum=config.retry_min_s,
            maximum=config.retry_max_s,
            ended=config.ended_s,
            refusals=config.refusals,
            unreachable=config.unreachable,
        ),
    )
