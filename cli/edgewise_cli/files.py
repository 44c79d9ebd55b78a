"""Local files: bounded reads, and writes that are never seen half done.

Files that hold a secret are created with mode 0600 before the first byte is in them.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from edgewise_cli.errors import FilesError

MAX_JSON_BYTES = 16 * 1024 * 1024


def write(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Replace `path` by `data`: temporary file, fsync, rename, fsync of the folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(0o600 if secret else 0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise FilesError(f"{path} cannot be written: {error.strerror or error}") from error


def write_json(path: Path, value: Any, *, secret: bool = False) -> None:
    """Replace `path` by readable JSON."""
    write(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n", secret=secret)


def read(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a file of at most `limit` bytes."""
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise FilesError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise FilesError(f"{path} has more than {limit} bytes")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object."""
    try:
        value = json.loads(read(path))
    except ValueError as error:
        raise FilesError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FilesError(f"{path} does not hold a JSON object")
    return value
