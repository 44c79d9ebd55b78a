"""Mergeable summaries of what a model saw and said, without keeping it.

Two kinds, which do not merge with each other: fixed-edge histograms and category counts,
whose merge is exact, and KLL quantile sketches (Karnin, Lang, Liberty 2016; Apache
DataSketches), whose rank error is 1.33 % at k = 200. A baseline carries both; a device
sends histograms over the baseline's edges, and KLL where `datasketches` is installed.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edgewise_protocol.bounds import MAX_BINS, MAX_DRIFT_BYTES, MAX_FEATURES
from edgewise_protocol.errors import MalformedError, SketchError
from edgewise_protocol.kll import check_kll

KLL_K: Final = 200
KLL_RANK_ERROR: Final = 0.0133
"""Normalized rank error that DataSketches promises for k = 200, single-sided, 99 % confidence."""
_MAX_KLL_CHARS: Final = 64_000
_Counted = Annotated[int, Meta(ge=0, le=2**53)]


class FeatureSketch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One feature of one window.

    Numeric: `edges` (E ascending values) and `counts` (E + 1: below the first edge, the
    half-open bins [e_i, e_i+1), at or above the last). Categorical: no edges, `counts[c]` of class c.
    """

    kind: str
    """`numeric` or `categorical`."""
    counts: Annotated[tuple[_Counted, ...], Meta(min_length=1, max_length=MAX_BINS)]
    edges: Annotated[tuple[float, ...], Meta(max_length=MAX_BINS)] = ()
    minimum: float = 0.0
    maximum: float = 0.0
    mean: float = 0.0
    not_finite: _Counted = 0
    """NaN and values beyond the range of float32, which no bin counts."""
    kll: Annotated[str, Meta(max_length=_MAX_KLL_CHARS)] = ""
    """Base64 of a serialized KLL floats sketch, or empty."""

    def __post_init__(self) -> None:
        if self.kind not in ("numeric", "categorical"):
            raise ValueError(f"unknown sketch kind {self.kind[:40]!r}")
        if any(c < 0 for c in self.counts):
            raise ValueError("a sketch has a negative count")
        if self.kind == "numeric":
            if len(self.counts) != len(self.edges) + 1:
                raise ValueError("a numeric sketch has one count more than edges")
            if any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)) or not all(
                np.isfinite(self.edges)
            ):
                raise ValueError("a sketch's edges are finite and ascending")

    @property
    def total(self) -> int:
        """Counted values."""
        return sum(self.counts)


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """`baseline.json` of a bundle: the features on the training distribution."""

    spec_version: str = "1.0"
    samples: int = 0
    features: Annotated[dict[str, FeatureSketch], Meta(max_length=MAX_FEATURES)] = {}


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        kept: NDArray[np.float64] = values[np.abs(values) <= np.finfo(np.float32).max].astype(np.float64)
    return kept


def quantile_edges(values: NDArray[np.floating[Any]], bins: int = 10) -> tuple[float, ...]:
    """Interior edges that cut `values` (1-D) in up to `bins` equally filled bins."""
    finite = _finite(values)
    if finite.size == 0:
        return (0.0,)
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, bins + 1)[1:-1]))
    return tuple(float(e) for e in edges)


def sketch_numeric(values: NDArray[np.floating[Any]], edges: tuple[float, ...], *, kll: bool = False) -> FeatureSketch:
    """Sketch a 1-D array of values over given edges."""
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    finite = _finite(values)
    counts = np.bincount(np.searchsorted(edges, finite, side="right"), minlength=len(edges) + 1)
    return FeatureSketch(
        kind="numeric",
        edges=edges,
        counts=tuple(int(c) for c in counts),
        minimum=float(finite.min()) if finite.size else 0.0,
        maximum=float(finite.max()) if finite.size else 0.0,
        mean=float(finite.mean()) if finite.size else 0.0,
        not_finite=int(values.size - finite.size),
        kll=_kll_bytes(finite) if kll and finite.size else "",
    )


def sketch_categorical(classes: NDArray[np.integer[Any]], number: int) -> FeatureSketch:
    """Count a 1-D array of class indices in [0, number)."""
    classes = np.asarray(classes).reshape(-1)
    inside = classes[(classes >= 0) & (classes < number)]
    # bincount takes the platform's index type alone: 32 bits on 32-bit ARM.
    counts = np.bincount(inside.astype(np.intp), minlength=number)
    return FeatureSketch(
        kind="categorical", counts=tuple(int(c) for c in counts), not_finite=int(classes.size - inside.size)
    )


def merge(a: FeatureSketch, b: FeatureSketch) -> FeatureSketch:
    """Merge two sketches of one feature. Exact for counts; KLL merges keep their error bound.

    Raises:
        SketchError: they are of different kinds or have different edges.
    """
    if a.kind != b.kind or a.edges != b.edges or len(a.counts) != len(b.counts):
        raise SketchError("sketches of different kinds or edges do not merge")
    na, nb = a.total, b.total
    if not na or not nb:
        return msgspec.structs.replace(a if na else b, not_finite=a.not_finite + b.not_finite)
    return FeatureSketch(
        kind=a.kind,
        edges=a.edges,
        counts=tuple(x + y for x, y in zip(a.counts, b.counts, strict=True)),
        minimum=min(a.minimum, b.minimum),
        maximum=max(a.maximum, b.maximum),
        mean=(a.mean * na + b.mean * nb) / (na + nb),
        not_finite=a.not_finite + b.not_finite,
        kll=_merge_kll(a.kll, b.kll) if a.kll and b.kll else "",
    )


def kll_available() -> bool:
    """Whether `datasketches` is installed."""
    try:
        import datasketches  # noqa: F401
    except ImportError:
        return False
    return True


def _kll_bytes(values: NDArray[np.float64]) -> str:
    from datasketches import kll_floats_sketch

    sketch = kll_floats_sketch(KLL_K)
    sketch.update(values.astype(np.float32))
    return base64.b64encode(sketch.serialize()).decode("ascii")


def load_kll(text: str) -> Any:
    """The `datasketches.kll_floats_sketch` of a sketch's `kll` field.

    Raises:
        SketchError: it is not one.
    """
    from datasketches import kll_floats_sketch

    try:
        data = base64.b64decode(text, validate=True)
        check_kll(data, KLL_K)
        return kll_floats_sketch.deserialize(data)
    except (ValueError, RuntimeError, IndexError, MemoryError) as error:
        raise SketchError(f"not a KLL sketch: {error}") from error


def _merge_kll(a: str, b: str) -> str:
    sketch = load_kll(a)
    sketch.merge(load_kll(b))
    return base64.b64encode(sketch.serialize()).decode("ascii")


_baseline_decoder = msgspec.json.Decoder(Baseline)


def decode_baseline(data: bytes) -> Baseline:
    """Parse a bundle's baseline; raise `MalformedError` if it is not one."""
    if len(data) > 2 * MAX_DRIFT_BYTES:
        raise MalformedError(f"the baseline has {len(data)} bytes; at most {2 * MAX_DRIFT_BYTES} are allowed")
    try:
        return _baseline_decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedError(f"the baseline is not valid: {error}") from error


def encode_baseline(baseline: Baseline) -> bytes:
    """Canonical JSON of a baseline."""
    return msgspec.json.encode(baseline, order="sorted")
