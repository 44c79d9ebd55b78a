"""What is checked of a finished model before it is bundled for a profile. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
from edgewise_profiles.schema import Format, Profile, Target
from edgewise_protocol.manifest import Golden, Tolerance
from numpy.typing import NDArray

from edgewise_converter import golden
from edgewise_converter.checks import Check, at_most
from edgewise_converter.engines.named import NamedModel, Tensors
from edgewise_converter.errors import EngineError, ModelFileError, SampleError

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
        error = _error(array, want, name)
        allowed = _EXPECTED.get(precision, _NARROW)
        if not error <= allowed:  # NaN is no agreement
            raise SampleError(
                f"the model's output {name!r} differs from the expected one by {100 * error:.3g} % of its range; "
                f"{100 * allowed:g} % are allowed for {precision}"
            )


def _error(array: NDArray[Any], want: NDArray[Any], name: str) -> float:
    """The largest difference as a share of what the expected answers span; of booleans, 0 or 1."""
    if want.dtype.kind not in "biuf":
        raise SampleError(f"the expected answers of {name!r} are {want.dtype}; numbers or booleans are compared")
    # In float64: a narrower type holds neither its own span nor its differences.
    got, wanted = array.astype(np.float64), want.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        span = float(wanted.max() - wanted.min()) or 1.0
        if np.isinf(span):
            raise SampleError(f"the expected answers of {name!r} are infinite, or span more than float64 holds")
        return float(np.abs(got - wanted).max()) / span


def budget_checks(profile: Profile, *, size: int, latency_ms: float, latency_binding: bool) -> tuple[Check, ...]:
    """The profile's bounds. `size` is the model file's, bytes; the latency is of one request, milliseconds."""
    budget = profile.budget
    return (
        at_most("model size", size / _KIB, budget.model_size_kib, "KiB"),
        at_most("median latency", latency_ms, budget.latency_ms, "ms", binding=latency_binding),
    )


def golden_rule(model: NamedModel, answers: Tensors, task: str, samples: int) -> Golden:
    """The tolerance of golden answers; where there are several outputs, each is judged alone.

    What stands for all of them together then is for agents from before outputs were judged alone: it refuses
    nothing that the outputs' own tolerances let pass.
    """
    steps, several = model.steps(), len(answers) > 1
    rules = {
        name: golden.describe(array, model.precision, steps.get(name), task, several=several)
        for name, array in answers.items()
    }
    if not several:
        (rule,) = rules.values()
        return msgspec.structs.replace(rule, samples=samples, top1=rule.top1 if samples > 1 else 0.0)
    return Golden(
        file=golden.GOLDEN_FILE,
        samples=samples,
        atol=max(rule.atol for rule in rules.values()),
        rtol=max(rule.rtol for rule in rules.values()),
        outliers=max(rule.outliers for rule in rules.values()),
        per_output=tuple(
            Tolerance(
                output=name,
                atol=rule.atol,
                rtol=rule.rtol,
                top1=rule.top1 if samples > 1 else 0.0,
                outliers=rule.outliers,
                rms=rule.rms,
            )
            for name, rule in sorted(rules.items())
        ),
    )
