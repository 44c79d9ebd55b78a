"""Packages of another machine's Debian, fetched without root and without a word to this machine's own apt."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgewise_cli.errors import MissingError, NotInstalledError, RefusedError, TimedOutError, UnreachableError

MIRROR: Final = "EDGEWISE_DEBIAN_MIRROR"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TIMEOUT_S: Final = 600


def fetch(packages: Sequence[str], suite: str, architecture: str, into: Path) -> list[Path]:
    """Download packages, their signatures checked by apt; the files, by name, as `NAME.deb`.

    Raises:
        NotInstalledError: apt, dpkg-deb or Debian's keys are missing on this machine.
        UnreachableError, MissingError: the mirror cannot be reached, or has no such package.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise NotInstalledError(f"this needs {tool}: make the package on a machine with Debian or Ubuntu")
    if not KEYRING.exists():
        raise NotInstalledError(f"{KEYRING} is missing: apt-get install debian-archive-keyring")
    mirror = mirror_of(suite)
    with tempfile.TemporaryDirectory(prefix="edgewise-apt-") as name:
        home = Path(name)
        env = _private(home, mirror, suite, architecture)
        _apt(["update"], env, home, mirror)
        _apt(["download", *packages], env, home, mirror)
        found: list[Path] = []
        for package in sorted(packages):
            files = sorted(home.glob(f"{package}_*.deb"))
            if len(files) != 1:
                raise MissingError(f"{mirror} {suite} has no {package} for {architecture}", code="wheel-missing")
            found.append(Path(shutil.move(files[0], into / f"{package}.deb")))
    return found


def mirror_of(suite: str) -> str:
    """Where Debian's packages come from: EDGEWISE_DEBIAN_MIRROR, else where this machine's own apt takes that suite.

    Raises:
        NotInstalledError: neither is there.
    """
    if given := os.environ.get(MIRROR):
        return given
    wanted = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    lines = _run(wanted, dict(os.environ), Path("/"), "asking apt for its sources").splitlines()
    sites = sorted({line.split()[0] for line in lines if line.split()[1:] == [suite, "main"]})
    if not sites:
        raise NotInstalledError(
            f"this machine's apt knows no Debian {suite}: name a mirror of Debian in the variable {MIRROR}"
        )
    return sites[0]


def unpack(deb: Path, into: Path) -> None:
    """Unpack a package's files; raises `RefusedError`."""
    _run(["dpkg-deb", "--extract", str(deb), str(into)], dict(os.environ), into, "unpacking " + deb.name)


def sha256(path: Path) -> str:
    """Digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _private(home: Path, mirror: str, suite: str, architecture: str) -> dict[str, str]:
    """An apt of its own in a folder; its environment."""
    for part in ("state/lists/partial", "cache/archives/partial", "none"):
        (home / part).mkdir(parents=True)
    (home / "status").touch()
    (home / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
    (home / "conf").write_text(
        f'Dir::State "{home}/state";\nDir::State::status "{home}/status";\nDir::Cache "{home}/cache";\n'
        f'Dir::Etc::SourceList "{home}/sources.list";\nDir::Etc::SourceParts "{home}/none";\n'
        f'Dir::Etc::PreferencesParts "{home}/none";\nAPT::Architecture "{architecture}";\n'
        f'APT::Architectures "{architecture}";\nAcquire::Languages "none";\nAcquire::Retries "3";\n'
        'APT::Sandbox::User "";\n'
    )
    return {**os.environ, "APT_CONFIG": str(home / "conf"), "LC_ALL": "C"}


def _apt(arguments: Sequence[str], env: dict[str, str], home: Path, mirror: str) -> None:
    try:
        said = _run(["apt-get", "-q", *arguments], env, home, f"apt-get {arguments[0]}")
    except RefusedError as error:
        if "Unable to locate" in str(error):
            raise MissingError(str(error), code="wheel-missing") from error
        raise UnreachableError(f"{mirror} ({MIRROR}): {error}") from error
    if arguments[0] == "update" and ("Err:" in said or "W: Failed" in said):
        raise UnreachableError(f"{mirror} ({MIRROR}) cannot be read: {said[-500:]}")


def _run(words: Sequence[str], env: dict[str, str], cwd: Path, what: str) -> str:
    try:
        done = subprocess.run(
            words, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TimedOutError(f"{what} took longer than {TIMEOUT_S} s") from error
    if done.returncode:
        raise RefusedError(f"{what} failed: {done.stdout[-800:].strip()}")
    return done.stdout
