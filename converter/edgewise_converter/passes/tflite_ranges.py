"""The ranges of a float TFLite file's activations over calibration samples.

ai-edge-quantizer's own calibration averages the ranges of samples (an exponential moving average
of .95), which clips what is rare; here the true smallest and largest values are the default.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.requests import Requests, Tensors

Range = tuple[float, float]
_MOMENTUM: Final = 0.95
_MOST: Final = 65_536
"""Values of one tensor and sample that percentiles are taken of; of larger ones every n-th is."""
_KEPT: Final = 8
_FOREIGN: Final = (ValueError, RuntimeError, TypeError, SystemError)
_measured: OrderedDict[str, dict[int, Range]] = OrderedDict()


def measure(data: bytes, calibration: Requests, rule: str, percentile: float = 100.0) -> dict[int, Range]:
    """Smallest and largest value of every float activation.

    Args:
        data: a float TFLite file with one signature, whose inputs the requests name.
        calibration: at least one request; those of a stateful model are one stream.
        rule: `minmax`, `percentile` or `average`, see `tflite_catalogue.Ranges`.
        percentile: per cent of a sample's values that its range covers, for that rule.

    Returns:
        by tensor of the main graph. The last results are kept: a search asks for the same again.

    Raises:
        PassError: the requests are not the file's, LiteRT fails, or a value is NaN or infinite.
    """
    key = f"{hashlib.sha256(data).hexdigest()} {calibration.sha256} {rule} {percentile!r}"
    if key not in _measured:
        _measured[key] = _measure(data, calibration, rule, percentile)
        while len(_measured) > _KEPT:
            _measured.popitem(last=False)
    _measured.move_to_end(key)
    return dict(_measured[key])


def _measure(data: bytes, calibration: Requests, rule: str, percentile: float) -> dict[int, Range]:
    module = need("ai_edge_litert.interpreter")
    found: dict[int, Range] = {}
    try:
        with quietly():
            interpreter = module.Interpreter(
                model_content=data,
                num_threads=1,
                experimental_preserve_all_tensors=True,
                experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            interpreter.allocate_tensors()
        inputs = _inputs(interpreter)
        if inputs.keys() != calibration.feeds.keys():
            raise PassError(f"the samples are of {sorted(calibration.feeds)}; the file takes {sorted(inputs)}")
        measured = _activations(interpreter)
        for feeds in _calls(calibration, inputs):
            for name, array in feeds.items():
                interpreter.set_tensor(inputs[name]["index"], array)
            interpreter.invoke()
            for index in measured:
                low, high = _range(interpreter.get_tensor(index), rule, percentile)
                if not (np.isfinite(low) and np.isfinite(high)):
                    raise PassError("an activation of the float model is NaN or infinite on the calibration samples")
                found[index] = _join(found.get(index), (low, high), rule)
    except _FOREIGN as error:
        raise PassError(f"the float model fails on the calibration samples: {str(error)[:300]}") from error
    return found


def _inputs(interpreter: Any) -> dict[str, Any]:
    (signature,) = interpreter.get_signature_list()
    by_index = {d["index"]: d for d in interpreter.get_input_details()}
    details = interpreter.get_signature_runner(signature).get_input_details()
    return {str(name): by_index[found["index"]] for name, found in details.items()}


def _activations(interpreter: Any) -> list[int]:
    """Float tensors that have values after a call, and are no constants."""
    made = {int(i) for op in interpreter._get_ops_details() for i in op["outputs"]}
    made |= {int(d["index"]) for d in interpreter.get_input_details()}
    return [
        int(d["index"])
        for d in interpreter.get_tensor_details()
        if int(d["index"]) in made and d["dtype"] == np.float32 and np.prod(d["shape"]) > 0
    ]


def _calls(calibration: Requests, inputs: dict[str, Any]) -> Iterator[Tensors]:
    """Feeds of one call each. A file of a fixed batch takes groups, the last one filled up with its last sample."""
    sizes = {int(d["shape"][0]) for d in inputs.values() if len(d["shape"])}
    size = sizes.pop() if calibration.batched and len(sizes) == 1 else 1
    for start in range(0, len(calibration), size):
        if not calibration.batched:
            group = calibration.one(start)
        else:
            rows = np.minimum(np.arange(start, start + size), len(calibration) - 1)
            group = {name: np.ascontiguousarray(array[rows]) for name, array in calibration.feeds.items()}
        for name, array in group.items():
            if array.shape != tuple(inputs[name]["shape"]):
                raise PassError(f"a sample of {name!r} is {array.shape}; the file takes {tuple(inputs[name]['shape'])}")
        yield {name: array.astype(inputs[name]["dtype"], copy=False) for name, array in group.items()}


def _range(values: NDArray[Any], rule: str, percentile: float) -> Range:
    if rule != "percentile":
        return float(values.min()), float(values.max())
    flat = values.reshape(-1)
    flat = flat[:: max(1, -(-flat.size // _MOST))]
    cut = (100.0 - percentile) / 2
    low, high = np.percentile(flat, [cut, 100.0 - cut])
    return float(low), float(high)


def _join(before: Range | None, new: Range, rule: str) -> Range:
    if before is None:
        return new
    if rule == "average":
        return tuple(_MOMENTUM * a + (1 - _MOMENTUM) * b for a, b in zip(before, new, strict=True))  # type: ignore[return-value]
    return min(before[0], new[0]), max(before[1], new[1])
