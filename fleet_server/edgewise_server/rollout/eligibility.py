"""Whether a device may get a new version of a model at all. Pure."""

from __future__ import annotations

from edgewise_protocol.agent import AGENT_TOO_OLD_CODE, is_older
from edgewise_protocol.manifest import AGENT_MODEL


def barred(model: str, agent_version: str, minimum: str) -> str:
    """The code of why a device gets no new version of `model`; empty when it does.

    A device whose agent is older than the fleet's minimum gets a newer agent and nothing else: what it
    runs already goes on.

    Args:
        agent_version: as the device reports it; one that cannot be read is too old.
        minimum: PEP 440, empty for no minimum.
    """
    return AGENT_TOO_OLD_CODE if model != AGENT_MODEL and is_older(agent_version, minimum) else ""
