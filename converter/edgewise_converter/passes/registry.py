"""Which passes there are. The list needs no torch and no engine; a pass is loaded when it runs."""

from __future__ import annotations

from typing import Final

from edgewise_converter.passes import compiled_catalogue, onnx_catalogue, tflite_catalogue
from edgewise_converter.passes.entry import PassEntry

PASSES: Final[dict[str, PassEntry]] = {
    entry.name: entry for entry in (*onnx_catalogue.ENTRIES, *tflite_catalogue.ENTRIES, *compiled_catalogue.ENTRIES)
}
