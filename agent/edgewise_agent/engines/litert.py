"""Engine `litert`: TFLite files on LiteRT with XNNPACK."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ai_edge_litert.interpreter import Interpreter

from edgewise_agent.engines.tflite import TfliteEngine


class LitertEngine(TfliteEngine):
    """A model in LiteRT's interpreter."""

    runtime: ClassVar[str] = "LiteRT"

    def _open(self, model_path: Path, threads: int) -> Any:
        return Interpreter(str(model_path), num_threads=threads)
