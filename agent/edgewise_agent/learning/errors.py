"""Why a device does not take part in a round, or fails in it."""

from __future__ import annotations

from edgewise_agent.errors import AgentError


class LearningError(AgentError):
    """Base of learning's errors."""

    code = "round"


class LocalDataError(LearningError):
    """The device's training data are not there, not readable, or not what the graph takes."""

    code = "round-data"


class TrainingBundleError(LearningError):
    """The training bundle or the weights do not go together."""

    code = "round-bundle"


class DivergedError(LearningError):
    """Training gave numbers that are not finite; there is nothing to send."""

    code = "round-diverged"


class TrainingFailedError(LearningError):
    """The training process failed, or took more than it may."""

    code = "round-training"
