"""What a conversion is asked for, and the key of its result. Light: a repeat loads no library that computes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec
from edgewise_profiles.schema import Profile, check
from edgewise_protocol.bounds import MIB

from edgewise_converter.cache import key_of
from edgewise_converter.errors import ConverterError
from edgewise_converter.hardware import Host
from edgewise_converter.search.result import Objective

RUN_FILE: Final = "run.json"
MAX_LATENCY_MS: Final = 60_000
_READ: Final = MIB
_MAX_RUN_FILES: Final = 100


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A model, its samples, and what is wanted of it."""

    model: str
    """A run directory, a file, or `module:factory`."""
    version: int
    calibration: str = ""
    heldout: str = ""
    state: tuple[tuple[str, str], ...] = ()
    name: str = ""
    task: str = ""
    labels: tuple[str, ...] = ()
    metric: str = ""
    origin: str = ""
    objective: Objective = "latency"
    accuracy_drop: float | None = None
    min_metric: float | None = None
    """Least value that the metric must reach, float too; in [0, 1]."""
    max_latency_ms: float | None = None
    max_size_kib: int | None = None
    """Bounds that stand in for the profile's budget."""
    trials: int = 24
    engine: str | None = None
    """Forms of this engine alone."""
    form: str | None = None
    """One form without a search: `default`, `int8`, `onnx-float16`, ..."""
    prove: str = "auto"
    """`auto`, `always` or `never`."""


def with_budget(profile: Profile, request: Request) -> Profile:
    """The profile, with the bounds that the request names in place of its own.

    Raises:
        ConverterError: a bound is not positive, or contradicts the rest of the profile.
    """
    budget = profile.budget
    if (latency := request.max_latency_ms) is not None:
        if not 0 < latency <= MAX_LATENCY_MS:
            raise ConverterError(f"a latency bound lies between 0 and {MAX_LATENCY_MS} ms; {latency:g} was given")
        budget = msgspec.structs.replace(budget, latency_ms=float(latency))
    if (size := request.max_size_kib) is not None:
        if size < 1:
            raise ConverterError(f"a size bound is at least 1 KiB; {size} was given")
        budget = msgspec.structs.replace(budget, model_size_kib=size)
    changed = msgspec.structs.replace(profile, budget=budget)
    if faults := check(changed):
        raise ConverterError(f"{profile.id} cannot have this budget: {'; '.join(faults)}")
    return changed


def result_key(request: Request, profile: Profile, host: Host, provable: str) -> str | None:
    """The key of a conversion's whole result; None where only running code can tell what the model is.

    It holds the bytes of every file that is read, so that a changed one is another conversion.

    Args:
        request: what is asked for.
        profile: the target.
        host: where latencies are measured.
        provable: how bundles can be proven on this host.
    """
    files = [_digest(path) for path in _files(request)]
    if None in files:
        return None
    plain = msgspec.structs.replace(request, model=Path(request.model).name, calibration="", heldout="")
    return key_of(
        msgspec.json.encode(plain, order="sorted"),
        profile.id,
        profile.sha256,
        msgspec.json.encode(host, order="sorted"),
        provable,
        *(digest or "" for digest in files),
    )


def _files(request: Request) -> list[Path]:
    path = Path(request.model)
    folder = path.parent if path.name == RUN_FILE else path
    found = [path]
    if folder.is_dir():
        found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))[:_MAX_RUN_FILES]
        found = [folder / RUN_FILE, *found]
    return found + [Path(name) for name in (request.calibration, request.heldout) if name]


def _digest(path: Path) -> str | None:
    digest = hashlib.sha256(path.name.encode())
    try:
        with path.open("rb") as source:
            while piece := source.read(_READ):
                digest.update(piece)
    except OSError:
        return None
    return digest.hexdigest()
