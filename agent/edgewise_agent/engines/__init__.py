"""Inference engines: one file each, chosen by the name that a bundle's manifest requires."""

from edgewise_agent.engines.base import Engine
from edgewise_agent.engines.errors import EngineError, InferenceError, InputError, ModelFileError, NoEngineError
from edgewise_agent.engines.registry import installed, open_engine

__all__ = [
    "Engine",
    "EngineError",
    "InferenceError",
    "InputError",
    "ModelFileError",
    "NoEngineError",
    "installed",
    "open_engine",
]
