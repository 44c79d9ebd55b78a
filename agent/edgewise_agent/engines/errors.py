"""What can go wrong between a model file and its answer. A runtime's own errors end here."""

from __future__ import annotations

from edgewise_agent.errors import AgentError


class EngineError(AgentError):
    """Base of the engines' errors."""

    code = "engine"


class NoEngineError(EngineError):
    """The engine is unknown to this agent, or its runtime is not installed."""

    code = "engine-missing"


class ModelFileError(EngineError):
    """The runtime refuses the file, or the file's tensors are not those of the manifest."""

    code = "model-file"


class InputError(EngineError):
    """The caller's inputs are not what the model takes: the caller's fault, not the model's."""

    code = "bad-input"


class InferenceError(EngineError):
    """The runtime failed on well-formed inputs."""

    code = "inference"
