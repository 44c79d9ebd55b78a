"""Finished model files, through the converter where it is installed. Its errors become this package's here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from edgewise_protocol.errors import ProtocolError

from edgewise_cli.commands.profiles import load as load_profile
from edgewise_cli.errors import FilesError, UsageError
from edgewise_cli.installed import need
from edgewise_cli.worker.models import Progress, converter_errors

EXTRA: Final = "publisher"
TASKS: Final = ("classification", "regression", "embedding", "other")
_MAX_LABEL_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Finished:
    """A finished file and what its publisher says of it."""

    path: Path
    sample: Path
    model: str
    version: int
    task: str
    labels: Path | None
    origin: str


def bundle_finished(
    finished: Finished, profiles: Sequence[str], out: Path, progress: Progress
) -> tuple[list[Path], list[dict[str, Any]]]:
    """Bundle a finished file for profiles; a missed budget is a result, no error.

    Returns:
        the bundles, and one report a profile.

    Raises:
        UsageError, RefusedError, FilesError, NotInstalledError.
    """
    if finished.task not in TASKS:
        raise UsageError(f"--task {finished.task[:40]!r} is none of {', '.join(TASKS)}")
    importer = need("edgewise_converter.importing.importer", EXTRA)
    description = importer.Description(
        model=finished.model,
        version=finished.version,
        task=finished.task,
        labels=read_labels(finished.labels) if finished.labels else (),
        origin=finished.origin,
    )
    try:
        with converter_errors():
            reports = importer.import_model(
                finished.path, finished.sample, [load_profile(name) for name in profiles], out, description, progress
            )
    except ProtocolError as error:
        raise UsageError(f"--model: {error}", code=error.code) from error
    bundles = [Path(r.path) for r in reports if r.passed]
    return bundles, [{**msgspec.to_builtins(r), "misses": list(r.misses())} for r in reports]


def read_labels(path: Path) -> tuple[str, ...]:
    """The classes of a text file, one a line."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_LABEL_BYTES + 1)
        if len(text) > _MAX_LABEL_BYTES:
            raise FilesError(f"{path} has more than {_MAX_LABEL_BYTES} bytes: it is no list of labels")
        return tuple(line.strip() for line in text.decode().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise FilesError(f"{path} cannot be read as text: {error}") from error
