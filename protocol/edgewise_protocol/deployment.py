"""States of one deployment on a device, as the device reports them and the server counts them.

    idle → downloading → verifying → staged → self_test → probation → committed | rolled_back
                    any of the first five may end in failed

The agent's transition table and its effects are the agent's; the words are shared.
"""

from __future__ import annotations

from typing import Final, Literal

DeploymentState = Literal[
    "idle",
    "downloading",
    "verifying",
    "staged",
    "self_test",
    "probation",
    "committed",
    "rolled_back",
    "failed",
]

IN_PROGRESS: Final[frozenset[str]] = frozenset({"downloading", "verifying", "staged", "self_test", "probation"})
SUCCEEDED: Final[frozenset[str]] = frozenset({"committed"})
ENDED_BADLY: Final[frozenset[str]] = frozenset({"rolled_back", "failed"})
FINAL: Final[frozenset[str]] = SUCCEEDED | ENDED_BADLY
