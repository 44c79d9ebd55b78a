"""What an ONNX file says of itself."""

from __future__ import annotations

from edgewise_converter.libraries import need


def versions(data: bytes) -> tuple[int, int]:
    """Operator set of the standard domain, and IR version."""
    model = need("onnx").load_model_from_string(data)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    return int(opset), int(model.ir_version)
