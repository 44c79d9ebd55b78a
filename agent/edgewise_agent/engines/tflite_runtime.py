"""Engine `tflite-runtime`: TFLite files on 32-bit ARM, for which LiteRT has no package.

It runs files with weights alone in int8 or int4 without an error, and answers wrong. Profiles that name it
allow no such form, and the self-test's golden samples catch one that was bundled all the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from tflite_runtime.interpreter import Interpreter

from edgewise_agent.engines.tflite import TfliteEngine


class TfliteRuntimeEngine(TfliteEngine):
    """A model in tflite-runtime's interpreter."""

    runtime: ClassVar[str] = "tflite-runtime"

    def _open(self, model_path: Path, threads: int) -> Any:
        return Interpreter(str(model_path), num_threads=threads)
