"""Files and directories that are either whole or absent, also after a power cut."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgewise_trainer.errors import RunError, RunExistsError


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically: temp file, fsync, replace, fsync of its directory.

    Raises:
        RunError: the file system refuses.
    """
    try:
        temporary = _beside(path)
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise RunError(f"{path.name} cannot be written: {error}") from error


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield a fresh directory beside `target` that takes its name when the block ends without an error.

    Raises:
        RunExistsError: `target` exists and is not an empty directory.
        RunError: the file system refuses.
    """
    refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = _beside(target)
        stage.mkdir()
    except OSError as error:
        raise RunError(f"{target} cannot be made: {error}") from error
    try:
        yield stage
        _publish(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def refuse_existing(target: Path) -> None:
    """Raise `RunExistsError` if `target` is anything but absent or an empty directory."""
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise RunExistsError(f"{target} already exists; choose another directory")


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    """A fresh name in the same directory. Unlike `tempfile`, files made under it obey the umask."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _publish(stage: Path, target: Path) -> None:
    for folder in (stage, *(p for p in stage.rglob("*") if p.is_dir())):
        sync_directory(folder)
    try:
        stage.replace(target)
        sync_directory(target.parent)
    except OSError as error:
        raise RunExistsError(f"{target} appeared meanwhile or cannot be written: {error}") from error
