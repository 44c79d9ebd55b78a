"""ONNX to onnxruntime's own container: optimized beforehand, so that it loads faster.

No optimization that only fits one processor is done, as the layouts of convolutions would be.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.onnx_answers import hold_same
from edgewise_converter.passes.onnx_catalogue import OnnxOrtConfig
from edgewise_converter.passes.ort_container import sort

_NAME: Final = "onnx_ort"
_ERRORS_ONLY: Final = 4


def apply(materials: Materials, before: Artifact, config: OnnxOrtConfig) -> Artifact:
    """Put a graph into the container, and hold that it answers as before.

    Raises:
        PassError: onnxruntime refuses it, the answers change, or older versions could not read it.
    """
    ort = need("onnxruntime")
    if before.precision == "int4":
        raise PassError(
            f"{_NAME}: a container with int4 products is only read by the version of onnxruntime that wrote it: keep "
            "the ONNX file"
        )
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    extended = config.level == "extended"
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if extended else levels.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    with tempfile.TemporaryDirectory(prefix="edgewise-ort-") as folder:
        out = Path(folder) / "model.ort"
        options.optimized_model_filepath = str(out)
        try:
            with quietly():
                ort.InferenceSession(before.data, options, providers=["CPUExecutionProvider"])
            data = sort(out.read_bytes())
        except Exception as error:
            raise PassError(
                f"onnxruntime cannot store {materials.model} in its container: {str(error)[:300]}"
            ) from error
    if before.precision in ("float32", "float16"):
        hold_same(before.data, data, materials.calibration, f"{materials.model} in onnxruntime's container")
    return Artifact(data, "ort", before.precision)
