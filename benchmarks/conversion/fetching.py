"""Packages by name from the index that pip is set up with: models and data in wheels, peers in environments.

Everything is pinned, and kept in one cache folder; a second run downloads and installs nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_DOWNLOAD_SECONDS: Final = 900
_INSTALL_SECONDS: Final = 2400


class FetchError(Exception):
    """pip could not bring a package."""


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder with what was downloaded and installed."""

    root: Path

    def wheel(self, package: str, version: str) -> Path:
        """The folder of an unpacked wheel.

        Raises:
            FetchError: pip cannot bring it.
        """
        return self._unpacked(package, version, "*.whl", ("--only-binary", ":all:"))

    def sources(self, package: str, version: str) -> Path:
        """The folder of an unpacked source distribution; nothing of it is built.

        Raises:
            FetchError: pip cannot bring it.
        """
        return self._unpacked(package, version, "*.tar.gz", ("--no-binary", package))

    def environment(self, name: str, requirements: tuple[str, ...]) -> Path:
        """The Python of a virtual environment that holds just these requirements.

        Raises:
            FetchError: pip cannot install them.
        """
        digest = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:12]
        folder = self.root / "environments" / f"{name}-{digest}"
        python, ready = folder / "bin" / "python", folder / "ready"
        if ready.exists():
            return python
        say(f"installing {', '.join(requirements)} into an environment of their own (minutes, once) ...")
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _pip([str(python), "-m", "pip", "install", "--quiet", *requirements], _INSTALL_SECONDS)
        ready.touch()
        return python

    def _unpacked(self, package: str, version: str, pattern: str, options: tuple[str, ...]) -> Path:
        folder = self.root / "packages" / f"{package}-{version}{pattern.removeprefix('*')}"
        if folder.exists():
            return folder
        say(f"downloading {package} {version} ...")
        temporary = folder.with_suffix(".part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
        _pip([*command, "--dest", str(temporary), f"{package}=={version}"], _DOWNLOAD_SECONDS)
        (archive,) = temporary.glob(pattern)
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(temporary / "content")
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(temporary / "content", filter="data")
        (temporary / "content").rename(folder)
        shutil.rmtree(temporary)
        return folder


def _pip(command: list[str], seconds: int) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"pip took more than {seconds} s: {' '.join(command[3:])}") from error
    if done.returncode:
        wrong = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise FetchError((wrong or done.stderr.splitlines() or ["pip failed"])[-1][:300])
