"""What is checked of a finished model before it is bundled for a profile. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from edgewise_profiles.schema import Format, Profile, Target
from edgewise_protocol.manifest import Golden, Tolerance
from numpy.typing import NDArray

from edgewise_converter import golden
from edgewise_converter.engines.named import NamedModel, Tensors
from edgewise_converter.errors import EngineError, ModelFileError, SampleError
from edgewise_converter.report import Check, at_most

_KIB: Final = 1024
_NARROW: Final = 0.25
_EXPECTED: Final = {"float32": 1e-3, "float16": 2e-2}
"""How far answers may be from the expected ones, relative to their range; narrower forms by `_NARROW`."""
_LIKE_INT8: Final = ("int8-dynamic", "int16x8")
"""Forms that LiteRT runs where it runs full int8; tflite-runtime does not."""


def target_for(profile: Profile, format_: Format, precision: str) -> Target:
    """The profile's target that a file of this form is.

    Raises:
        ModelFileError: the profile allows no such form.
    """
    for target in profile.targets:
        if (target.format, target.precision) == (format_, precision):
            return target
    for target in profile.targets:
        if precision in _LIKE_INT8 and (target.engine, target.format, target.precision) == ("litert", format_, "int8"):
            return target
    allowed = ", ".join(f"{t.format}-{t.precision}" for t in profile.targets)
    raise ModelFileError(
        f"the file is {format_}-{precision}, which {profile.id} does not allow; it allows {allowed}. "
        "See `edgewise profiles show`; `edgewise convert` makes other forms from a training run"
    )


def check_answers(answers: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], precision: str) -> None:
    """Hold a model's answers on the sample against sense, and against what they were expected to be.

    Raises:
        EngineError: an answer is NaN or infinite, or holds nothing.
        SampleError: it is not the expected one.
    """
    for name, array in answers.items():
        if array.size == 0:
            raise EngineError(f"the model's output {name!r} is empty on the sample")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise EngineError(f"the model's output {name!r} is NaN or infinite on the sample")
        if name not in expected:
            continue
        want = expected[name]
        if want.shape != array.shape:
            raise SampleError(f"the model answers {name!r} as {list(array.shape)}; expected is {list(want.shape)}")
        span = float(want.max() - want.min()) or 1.0
        error = float(np.abs(array.astype(np.float64) - want.astype(np.float64)).max()) / span
        allowed = _EXPECTED.get(precision, _NARROW)
        if not error <= allowed:  # NaN is no agreement
            raise SampleError(
                f"the model's output {name!r} differs from the expected one by {100 * error:.3g} % of its range; "
                f"{100 * allowed:g} % are allowed for {precision}"
            )


def budget_checks(profile: Profile, *, size: int, latency_ms: float, latency_binding: bool) -> tuple[Check, ...]:
    """The profile's bounds. `size` is the model file's, bytes; the latency is of one request, milliseconds."""
    budget = profile.budget
    return (
        at_most("model size", size / _KIB, budget.model_size_kib, "KiB"),
        at_most("median latency", latency_ms, budget.latency_ms, "ms", binding=latency_binding),
    )


def golden_rule(model: NamedModel, answers: Tensors, task: str, samples: int) -> Golden:
    """The tolerance of golden answers, per output where there are several."""
    steps = model.steps()
    rules = {
        name: golden.describe(array, _precision(model.precision, array), steps.get(name), task)
        for name, array in answers.items()
    }
    if len(rules) == 1:
        (rule,) = rules.values()
        return Golden(
            file=golden.GOLDEN_FILE,
            samples=samples,
            atol=rule.atol,
            rtol=rule.rtol,
            top1=rule.top1 if samples > 1 else 0.0,
            outliers=rule.outliers,
        )
    return Golden(
        file=golden.GOLDEN_FILE,
        samples=samples,
        atol=max(rule.atol for rule in rules.values()),
        rtol=max(rule.rtol for rule in rules.values()),
        outliers=0.0 if model.precision == "float32" else 0.05,
        per_output=tuple(Tolerance(output=n, atol=r.atol, rtol=r.rtol) for n, r in sorted(rules.items())),
    )


def _precision(precision: str, answers: NDArray[Any]) -> Any:
    """Whole numbers answered by a float model are held as strictly as float32."""
    return precision if answers.dtype.kind == "f" else "float32"
