"""The table of engines. An engine's module, and with it its runtime, is imported when a model needs it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Final

import msgspec
from edgewise_protocol.manifest import Manifest

from edgewise_agent.config import GatewayConfig
from edgewise_agent.engines.base import Engine
from edgewise_agent.engines.errors import NoEngineError

MAX_THREADS: Final = 64
GATEWAY_ENGINE: Final = "c99"
GATEWAY_VERSION: Final = "1"
"""Of the frames that firmware and gateway exchange."""


class PlugIn(msgspec.Struct, frozen=True):
    """Where an engine is found. The class takes (model_path, manifest, threads)."""

    distribution: str
    module: str
    type_name: str
    extra: str


PLUG_INS: Final[dict[str, PlugIn]] = {
    "onnxruntime": PlugIn("onnxruntime", "edgewise_agent.engines.onnx", "OnnxEngine", "onnxruntime"),
    "litert": PlugIn("ai-edge-litert", "edgewise_agent.engines.litert", "LitertEngine", "litert"),
    "tflite-runtime": PlugIn(
        "tflite-runtime", "edgewise_agent.engines.tflite_runtime", "TfliteRuntimeEngine", "tflite-runtime"
    ),
    "iree": PlugIn("iree-base-runtime", "edgewise_agent.engines.iree", "IreeEngine", "iree"),
}


def installed(gateway: GatewayConfig | None = None) -> dict[str, str]:
    """Engine name to version of its runtime, for those installed; no runtime is imported.

    A gateway stands for a board that runs nothing but its firmware.
    """
    if gateway is not None and gateway.board:
        return {GATEWAY_ENGINE: GATEWAY_VERSION}
    found: dict[str, str] = {}
    for name, plug_in in PLUG_INS.items():
        try:
            found[name] = metadata.version(plug_in.distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def open_engine(
    engine: str,
    model_path: Path,
    manifest: Manifest,
    threads: int = 1,
    gateway: GatewayConfig | None = None,
    *,
    hold: bool = False,
) -> Engine:
    """Load a model file.

    Args:
        engine: one of `PLUG_INS`.
        model_path: the file that the manifest's `model_file` names, already verified.
        manifest: the bundle's manifest, of kind `inference`.
        threads: threads within one inference, 1 to 64.
        gateway: how the board is reached that this agent stands for.
        hold: keep that board for as long as the engine is open.

    Raises:
        NoEngineError: the engine is unknown or not installed.
        ModelFileError: the runtime refuses the file, or its tensors are not the manifest's.
    """
    if engine == GATEWAY_ENGINE:
        if gateway is None or not gateway.board:
            raise NoEngineError(f"the engine {engine} runs on boards behind a gateway: set gateway.board")
        from edgewise_agent.gateway.engine import C99Engine

        return C99Engine(model_path, manifest, gateway, hold=hold)
    plug_in = PLUG_INS.get(engine)
    if plug_in is None:
        raise NoEngineError(f"this agent knows no engine {engine[:80]!r}; it knows {', '.join(sorted(PLUG_INS))}")
    if engine not in installed():
        raise NoEngineError(
            f"the engine {engine} is not installed: install edgewise-agent[{plug_in.extra}] on this device"
        )
    try:
        make: Callable[[Path, Manifest, int], Any] = getattr(import_module(plug_in.module), plug_in.type_name)
    except ImportError as error:
        raise NoEngineError(f"the engine {engine} is installed but cannot be imported: {error}") from error
    opened = make(model_path, manifest, max(1, min(threads, MAX_THREADS)))
    if not isinstance(opened, Engine):
        raise NoEngineError(f"the engine {engine} is not an Engine")
    return opened
