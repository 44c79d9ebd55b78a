"""The sample of a finished model's inputs: read from .npz, .npy or .safetensors, and held against the model.

An array is an input's by its name, or `input.<name>`; the only input may have any. `y` are
labels (class indices), `output.<name>` what the model is expected to answer.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from edgewise_protocol.bounds import MIB
from edgewise_protocol.manifest import TensorSpec
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors

from edgewise_converter.engines.dtypes import NUMPY
from edgewise_converter.engines.named import Tensors
from edgewise_converter.errors import SampleError

MAX_SAMPLE_BYTES: Final = 1024 * MIB
MAX_SAMPLES: Final = 100_000
LABELS: Final = "y"
INPUT: Final = "input."
OUTPUT: Final = "output."


class Sample(NamedTuple):
    """Inputs with what is known of their answers."""

    inputs: Tensors
    """Every input of the model; (N, ...) where the model has a batch."""
    labels: NDArray[np.int64] | None
    expected: Tensors
    """What the model should answer, for the outputs that the file speaks of."""
    fingerprint: str
    """SHA-256 over names, types, shapes and values."""


def read_arrays(path: Path) -> Tensors:
    """Arrays of a file by name; the one of an .npy file is called `x`.

    Raises:
        SampleError: it cannot be read, is too large, or holds Python objects.
    """
    try:
        if path.stat().st_size > MAX_SAMPLE_BYTES:
            raise SampleError(f"{path.name} has more than {MAX_SAMPLE_BYTES // MIB} MiB; a few hundred samples suffice")
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            return dict(load_safetensors(data))
        if path.suffix == ".npy":
            return {"x": np.asarray(np.load(io.BytesIO(data), allow_pickle=False))}
        if path.suffix == ".npz":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if sum(member.file_size for member in archive.infolist()) > MAX_SAMPLE_BYTES:
                    raise SampleError(f"{path.name} unpacks to more than {MAX_SAMPLE_BYTES // MIB} MiB")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return {name: np.asarray(arrays[name]) for name in arrays.files}
    except OSError as error:
        raise SampleError(f"{path} cannot be read: {error.strerror or error}") from error
    except SampleError:
        raise
    except Exception as error:  # numpy's reader parses headers as Python, and raises whatever that does
        raise SampleError(f"{path.name} cannot be read as {path.suffix}: {str(error)[:200]}") from error
    raise SampleError(f"{path.name} is neither .npz, .npy nor .safetensors")


def integers_of(arrays: Mapping[str, NDArray[Any]]) -> frozenset[str]:
    """Names of arrays that hold integers: a quantized file's input that is given so is served so."""
    return frozenset(name.removeprefix(INPUT) for name, array in arrays.items() if array.dtype.kind in "iu")


def match(
    arrays: Mapping[str, NDArray[Any]], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batch: int | None
) -> Sample:
    """Hold arrays against a model. Pure.

    Args:
        arrays: what the sample file holds.
        inputs, outputs: the model's, as a client sees them.
        batch: the model's, see `engines.named`; without one the arrays are those of one request.

    Raises:
        SampleError: an input is missing, or has another type or shape, or is not finite.
    """
    names = {spec.name for spec in inputs}
    rest = dict(arrays)
    expected = {spec.name: rest.pop(OUTPUT + spec.name) for spec in outputs if OUTPUT + spec.name in rest}
    labels = rest.pop(LABELS, None) if LABELS not in names else None
    found = {spec.name: rest.pop(key) for spec in inputs if (key := key_of(spec.name, rest))}
    if not found and len(inputs) == 1 and len(rest) == 1:
        found = {inputs[0].name: rest.popitem()[1]}
    missing = sorted(names - found.keys())
    if missing or rest:
        parts = [f"lacks the inputs {', '.join(map(repr, missing))}"] if missing else []
        parts += [f"has {', '.join(map(repr, sorted(rest)))} that the model does not know"] if rest else []
        raise SampleError(
            f"the sample {', and '.join(parts)}; the model takes {', '.join(_say(spec) for spec in inputs)}, and gives "
            f"{', '.join(_say(spec) for spec in outputs)}"
        )
    ready = {spec.name: fit(spec, found[spec.name]) for spec in inputs}
    counts = {len(array) for array in ready.values()} if batch is not None else {1}
    if len(counts) != 1 or not 1 <= (count := counts.pop()) <= MAX_SAMPLES:
        raise SampleError(f"the inputs hold different numbers of samples, none, or more than {MAX_SAMPLES}")
    return Sample(ready, labels_of(labels, count), expected, fingerprint(arrays))


def fingerprint(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, types, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def key_of(name: str, arrays: Mapping[str, Any]) -> str | None:
    """Under what an input's array stands in a sample file; None where it does not."""
    return name if name in arrays else INPUT + name if INPUT + name in arrays else None


def _say(spec: TensorSpec) -> str:
    return f"{spec.name!r} ({spec.dtype} {['N' if n == -1 else n for n in spec.shape]})".replace("'N'", "N")


def fit(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    """An array in an input's type; raises `SampleError` unless type, shape and values are such as it takes."""
    wanted = NUMPY[spec.dtype]
    if len(array.shape) != len(spec.shape) or any(
        s not in (-1, n) for s, n in zip(spec.shape, array.shape, strict=True)
    ):
        raise SampleError(
            f"the sample of {spec.name!r} has the shape {list(array.shape)}; the model takes {_say(spec)}"
        )
    if array.size == 0:
        raise SampleError(f"the sample of {spec.name!r} is empty")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(np.count_nonzero(~np.isfinite(array)))
        raise SampleError(f"the sample of {spec.name!r} holds {bad} values that are NaN or infinite")
    if array.dtype.kind not in "biuf":
        raise SampleError(f"the sample of {spec.name!r} is {array.dtype}; the model takes {_say(spec)}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast: NDArray[Any] = array.astype(wanted)
    if wanted.kind == "f" and not np.isfinite(cast).all():
        raise SampleError(f"the sample of {spec.name!r} holds values beyond the range of {spec.dtype}")
    exact = array.dtype == wanted or (array.dtype.kind == wanted.kind == "f") or np.array_equal(cast, array)
    if not exact:
        raise SampleError(f"the sample of {spec.name!r} is {array.dtype}; the model takes {_say(spec)}")
    return np.ascontiguousarray(cast)


def labels_of(labels: NDArray[Any] | None, count: int) -> NDArray[np.int64] | None:
    """Labels as class indices; raises `SampleError` unless there is one a sample."""
    if labels is None:
        return None
    if labels.dtype.kind not in "iu" or labels.shape != (count,) or int(labels.min()) < 0:
        raise SampleError(f"the labels {LABELS!r} must be {count} class indices, one a sample")
    return labels.astype(np.int64)
