"""An agent package from a profile: wheels collected, then an archive, a Debian package, or both."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edgewise_cli.agent_package import archive, contents, cross, deb, debian, own, wheelhouse
from edgewise_cli.agent_package.finding import Finder
from edgewise_cli.agent_package.needs import AGENT, DEBIAN, Needs, Release
from edgewise_cli.agent_package.wheelhouse import Wheel
from edgewise_cli.errors import FilesError, MissingError, RefusedError

Format = Literal["tar", "deb", "both"]
Tell = Callable[[str, float | None], None]
_COLLECTED: Final = 0.6
"""The part of the work that is done when the wheels are there, for people who watch."""


@dataclass(frozen=True)
class Built:
    """A package's file."""

    path: Path
    kind: Literal["tar", "deb"]
    sha256: str
    size: int


@dataclass(frozen=True)
class Made:
    """What was made, and of what."""

    version: str
    """The agent's."""
    wheels: tuple[Wheel, ...]
    packages: tuple[Built, ...]


def build(needs: Needs, out: Path, form: Format, given: Path | None, tell: Tell) -> Made:
    """Make the packages in the folder `out`, each appearing whole.

    Args:
        given: a folder of wheels: then nothing is taken from an index.
        tell: is called with (what is being done, the part that is done or None).

    Raises:
        CliError: with what is missing, and what to do about it.
    """
    with _disk(out), tempfile.TemporaryDirectory(prefix="edgewise-agent-package-") as name:
        work = Path(name)
        wheels = _collect(needs, work, given, lambda text: tell(text, None))
        version = next(wheel.version for wheel in wheels if wheel.distribution == AGENT)
        out.mkdir(parents=True, exist_ok=True)
        packages: list[Built] = []
        if form in ("tar", "both"):
            tell("writing the archive", _COLLECTED)
            packages.append(_tar(needs, version, wheels, work, out, given, tell))
        if form in ("deb", "both"):
            tell("building the Debian package", 0.9)
            path = out / deb.file_name(needs, version)
            with _whole(path) as part:
                deb.write(needs, version, wheels, work / "deb", part)
            packages.append(_built(path, "deb"))
    return Made(version, wheels, tuple(packages))


def _collect(needs: Needs, work: Path, given: Path | None, tell: Callable[[str], None]) -> tuple[Wheel, ...]:
    folder = work / "own"
    own.make(folder, given, tell)
    if needs.release is not None and given is None:
        cross.build(needs, needs.release, folder, tell)
    folders = [folder, *([given] if given is not None else [])]
    finder = Finder(needs, work, folders, index=given is None, tell=tell)
    return wheelhouse.collect(needs, finder.fetch, tell)


def _tar(
    needs: Needs, version: str, wheels: tuple[Wheel, ...], work: Path, out: Path, given: Path | None, tell: Tell
) -> Built:
    entries: dict[str, bytes | Path] = {f"wheels/{wheel.path.name}": wheel.path for wheel in wheels}
    if len(entries) != len(wheels):
        raise RefusedError("two wheels have the same file name")
    if needs.release is not None:
        (work / "debs").mkdir()
        tell("fetching Debian's packages", None)
        debs = _debs(needs.release, DEBIAN[needs.profile.machine], given, work / "debs")
        entries |= {f"debs/{path.name}": path for path in debs}
    digests = {name: debian.sha256(path) for name, path in entries.items() if isinstance(path, Path)}
    made = contents.small_files(needs, version, wheels, digests)
    digests |= {name: contents.digest(data) for name, data in made.items()}
    entries |= {**made, "SHA256SUMS": contents.checksums(digests)}
    root = f"edgewise-agent-{version}-{needs.profile.id}-{needs.abi}"
    path = out / f"{root}.tar.gz"
    with _whole(path) as part, part.open("wb") as stream:
        archive.write(
            stream,
            root,
            entries,
            lambda done: tell("writing the archive", _COLLECTED + done * 0.3),
        )
        stream.flush()
        os.fsync(stream.fileno())
    return _built(path, "tar")


def _debs(release: Release, machine: str, given: Path | None, into: Path) -> list[Path]:
    """Debian's packages, from the folder that was given or from the mirror."""
    if given is None:
        return debian.fetch(release.packages, release.suite, machine, into)
    found: list[Path] = []
    for name in release.packages:
        files = sorted(
            [*given.glob(f"{name}.deb"), *given.glob(f"{name}_*_{machine}.deb"), *given.glob(f"{name}_*_all.deb")]
        )
        if not files:
            raise MissingError(
                f"--wheels holds no Debian package {name} for {machine}: apt-get download {name}:{machine}",
                code="wheel-missing",
            )
        found.append(Path(shutil.copy(files[0], into / f"{name}.deb")))
    return found


def _built(path: Path, kind: Literal["tar", "deb"]) -> Built:
    return Built(path, kind, debian.sha256(path), path.stat().st_size)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place at the end, and vanishes on any failure."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FilesError(f"the package cannot be written to {out}: {error.strerror or error}") from error
