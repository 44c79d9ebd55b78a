"""What a conversion is asked for, and the key of its result. Light: a repeat loads no library that computes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec
from edgewise_profiles.schema import Profile
from edgewise_protocol.bounds import MIB

from edgewise_converter.cache import key_of
from edgewise_converter.hardware import Host
from edgewise_converter.search.result import Objective

RUN_FILE: Final = "run.json"
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
    trials: int = 24
    engine: str | None = None
    """Forms of this engine alone."""
    form: str | None = None
    """One form without a search: `default`, `int8`, `onnx-float16`, ..."""
    prove: str = "auto"
    """`auto`, `always` or `never`."""


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
