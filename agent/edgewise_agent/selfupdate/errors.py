"""Why an update of the agent itself does not hold."""

from __future__ import annotations

from edgewise_agent.errors import InstallError


class AgentUpdateError(InstallError):
    """An agent bundle cannot be installed or started."""

    code = "agent-update"


class NoLauncherError(AgentUpdateError):
    """The agent was not started by its launcher, which alone can change it."""

    code = "agent-no-launcher"


class WheelError(AgentUpdateError):
    """A wheel of an agent bundle is damaged, or reaches outside of its slot."""

    code = "agent-wheel"


class GivenUpError(AgentUpdateError):
    """The launcher went back to the agent before this one; `code` says why."""

    code = "agent-given-up"

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        if code:
            self.code = code


class AgentCheckError(AgentUpdateError):
    """The new agent's check of itself failed; `code` says where."""

    code = "agent-self-check"

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        if code:
            self.code = code
