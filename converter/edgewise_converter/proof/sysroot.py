"""Sysroots, one a profile, cached: built beside their place, put there whole, never changed after.

Two that build the same one wait for each other. A sysroot that is in use is not removed: users hold
its lock shared, builders and removers alone. Nothing is ever mounted in one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Final

import msgspec
from edgewise_profiles.schema import Profile

from edgewise_converter import cache
from edgewise_converter.errors import NotPreparedError, ProofToolsError, SysrootError
from edgewise_converter.proof import process, tools
from edgewise_converter.proof.recipe import Recipe, debootstrap_command, recipe_of, warming_command, wheels_command
from edgewise_converter.proof.runner import DISTRIBUTIONS

Progress = Callable[[str, float], None]
ROOM: Final = "sysroots"
MAX_SYSROOTS: Final = 12
"""The least recently used go, when more are built."""
_RECIPE: Final = "recipe.json"
_ROOT: Final = "root"
_MAX_RECIPE: Final = 1 << 20
_STEP_S: Final = 1200.0
_WAIT_S: Final = 2400.0
_POLL_S: Final = 0.2
_MIN_FREE: Final = 1 << 30
_MOUNTS: Final = Path("/proc/self/mountinfo")
_DEBIAN_STAGES: Final = {"running apt-get update": 0.05, "downloading packages": 0.1, "extracting archives": 0.3}
_PATHS: Final = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where the programs of a Debian are that builds, whatever this process's own PATH."""
_CPU_LISTS: Final = ("possible", "present", "online")


@dataclass(frozen=True, slots=True)
class Sysroot:
    """One that is there."""

    folder: Path
    recipe: Recipe

    @property
    def root(self) -> Path:
        """What becomes `/`."""
        return self.folder / _ROOT

    @property
    def qemu(self) -> str:
        """The emulator, inside."""
        return f"/usr/bin/{self.recipe.qemu}"

    @property
    def python(self) -> str:
        """The interpreter, inside."""
        return f"/usr/bin/python{self.recipe.python}"

    @property
    def bytes(self) -> int:
        """What it takes on the disk."""
        return sum(p.lstat().st_blocks * 512 for p in self.folder.rglob("*"))


def default_home() -> Path:
    """`$EDGEWISE_CACHE/sysroots`, else `~/.cache/edgewise/sysroots`."""
    return cache.default_root().parent / ROOM


def recipe_here(profile: Profile) -> Recipe:
    """The profile's recipe with the versions that this converter has; raises `NoEmulationError`."""
    found = {}
    for name in (*DISTRIBUTIONS.values(), "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return recipe_of(profile, found)


def find(profile: Profile, home: Path | None = None) -> Sysroot | None:
    """The profile's sysroot, if it has been built; raises `NoEmulationError`."""
    recipe = recipe_here(profile)
    folder = (home or default_home()) / recipe.digest
    return Sysroot(folder, recipe) if (folder / _RECIPE).is_file() else None


def need(profile: Profile, home: Path | None = None) -> Sysroot:
    """The profile's sysroot; raises `NotPreparedError` if it has not been built, `NoEmulationError`."""
    found = find(profile, home)
    if found is None:
        raise NotPreparedError(
            f"there is no sysroot of {profile.id} here, or the engines have been updated since: "
            f"build it with  edgewise prove --prepare {profile.id}"
        )
    return found


def ensure(
    profile: Profile, home: Path | None = None, progress: Progress | None = None, mirror: str | None = None
) -> Sysroot:
    """The profile's sysroot, built if it is not there.

    Args:
        profile: what is stood for.
        home: the folder of all sysroots.
        progress: called with what is being done, and the share that is behind.
        mirror: of Debian, see `tools.debian_sources`.

    Raises:
        NoEmulationError: the profile cannot be emulated.
        ProofToolsError: programs or rights are missing.
        SysrootError: Debian or a wheel cannot be had, or the disk is full; nothing is left of it.
    """
    found = find(profile, home)
    if found is not None:
        return found
    recipe, place = recipe_here(profile), home or default_home()
    tools.check_builder(recipe)
    tell = progress or (lambda _text, _fraction: None)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place, recipe.digest, tell):
            _remove_partial(place, recipe.digest)
            found = find(profile, place)
            if found is None:
                _build(recipe, place, tell, mirror)
    except OSError as error:
        raise SysrootError(f"the sysroot of {profile.id} cannot be built in {place}: {error.strerror}") from error
    _keep_few(place, recipe.digest)
    tell("the sysroot is there", 1.0)
    return Sysroot(place / recipe.digest, recipe)


@contextlib.contextmanager
def used(sysroot: Sysroot) -> Iterator[None]:
    """Keep a sysroot from being removed; raises `NotPreparedError` if it has been."""
    home, digest = sysroot.folder.parent, sysroot.folder.name
    try:
        lock: IO[bytes] = (home / f"{digest}.lock").open("rb")
    except OSError as error:
        raise NotPreparedError(f"the sysroot {digest} has no lock file: build it again") from error
    with lock:
        _take(lock, fcntl.LOCK_SH, lambda _text, _fraction: None)
        if not (sysroot.folder / _RECIPE).is_file():
            raise NotPreparedError(f"the sysroot {digest} has been removed: build it again")
        with contextlib.suppress(OSError):  # another user's may be used, too
            os.utime(sysroot.folder / _RECIPE)
        yield


def listing(home: Path | None = None) -> list[Sysroot]:
    """All that are there, the most recently used first."""
    place = home or default_home()
    found = []
    for path in place.glob(f"*/{_RECIPE}"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            with path.open("rb") as source:
                recipe = msgspec.json.decode(source.read(_MAX_RECIPE), type=Recipe)
            if not path.parent.name.startswith("."):
                found.append((path.stat().st_mtime, Sysroot(path.parent, recipe)))
    return [sysroot for _, sysroot in sorted(found, key=lambda one: -one[0])]


def prune(keep: Callable[[Recipe], bool], home: Path | None = None) -> list[Sysroot]:
    """Remove sysroots, and what builders that died have left; those in use stay.

    Args:
        keep: whether one of this recipe stays.
        home: the folder of all sysroots.

    Raises:
        SysrootError: something is mounted in one, or it cannot be removed.
    """
    place = home or default_home()
    gone = [sysroot for sysroot in listing(place) if not keep(sysroot.recipe) and _remove(sysroot)]
    for path in place.glob(".*.*"):
        digest = path.name.split(".")[1]
        with contextlib.suppress(BlockingIOError), _lock_file(place, digest) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_partial(place, digest)
    return gone


def _build(recipe: Recipe, home: Path, tell: Progress, mirror: str | None) -> None:
    """Build beside the place, then put it there whole."""
    free = shutil.disk_usage(home).free
    if free < _MIN_FREE:
        raise SysrootError(f"{home} has {free >> 20} MiB left; a sysroot needs {_MIN_FREE >> 20}")
    sources = tools.debian_sources(recipe.suite, mirror)
    folder = Path(tempfile.mkdtemp(prefix=f".{recipe.digest}.", dir=home))
    try:
        folder.chmod(0o755)
        root = folder / _ROOT
        what = f"Debian {recipe.suite} for {recipe.architecture}"
        tell(f"fetching {what}", 0.02)
        _step(debootstrap_command(recipe, str(root)), sources.encode(), what, lambda line: _debian_line(line, tell))
        wheels = ", ".join(recipe.requirements)
        tell(f"fetching {wheels}", 0.5)
        _step(wheels_command(recipe, sys.executable, str(root)), b"", wheels, lambda _line: None)
        _furnish(recipe, root)
        tell(f"loading the engines on an emulated {recipe.cpu}", 0.7)
        _warm(recipe, root)
        (folder / _RECIPE).write_bytes(msgspec.json.format(msgspec.json.encode(recipe)))
        folder.replace(home / recipe.digest)
    finally:
        if folder.exists():
            _remove_tree(folder)


def _step(command: list[str], data: bytes, what: str, tell: Callable[[str], None]) -> None:
    command[0] = tools.program(command[0])
    paths = os.pathsep.join((os.environ.get("PATH", ""), *_PATHS)).lstrip(os.pathsep)
    environment = {**os.environ, "PATH": paths}
    done = process.run(command, data=data, limit_s=_STEP_S, max_output=1 << 20, environment=environment, tell=tell)
    if done.timed_out:
        raise SysrootError(f"{what} could not be fetched within {_STEP_S / 60:.0f} minutes: {done.log[-600:]}")
    if done.status != 0:
        raise SysrootError(f"{what} could not be fetched: {_last_errors(done.log)}")


def _warm(recipe: Recipe, root: Path) -> None:
    command = warming_command(recipe, str(root))
    command[0] = tools.program(command[0])
    done = process.run(command, limit_s=_STEP_S, environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    if done.status != 0:
        raise SysrootError(f"the engines do not load on an emulated {recipe.cpu}: {_last_errors(done.log)}")


def _debian_line(line: str, tell: Progress) -> None:
    """Hand on mmdebstrap's own words for what takes time."""
    for said, share in _DEBIAN_STAGES.items():
        if line.startswith(f"I: {said}"):
            tell(f"Debian: {said}", share)


def _last_errors(log: str) -> str:
    """The lines that say what went wrong, of a program that prints much else."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("e:", "error"))]
    return " ".join(errors or lines)[-800:] or "it printed nothing"


def _furnish(recipe: Recipe, root: Path) -> None:
    """The emulator, and what engines read of the processor."""
    emulator = root / "usr/bin" / recipe.qemu
    shutil.copyfile(tools.program(recipe.qemu), emulator)
    emulator.chmod(0o755)
    with contextlib.suppress(FileNotFoundError):  # whoever runs in here writes nothing, and finds nothing of others
        (root / "tmp").chmod(0o755)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text(recipe.cpuinfo)
    cpus = root / "sys/devices/system/cpu"
    cpus.mkdir(parents=True, exist_ok=True)
    for name in _CPU_LISTS:
        (cpus / name).write_text("0\n")


def _keep_few(home: Path, digest: str) -> None:
    for sysroot in listing(home)[MAX_SYSROOTS:]:
        if sysroot.recipe.digest != digest:
            _remove(sysroot)


def _remove(sysroot: Sysroot) -> bool:
    """Remove one; False where it is in use."""
    home, digest = sysroot.folder.parent, sysroot.folder.name
    with _lock_file(home, digest) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # Renamed first: half of one is never taken for a sysroot.
        aside = home / f".{digest}.removed"
        if aside.exists():
            _remove_tree(aside)
        try:
            sysroot.folder.rename(aside)
        except OSError as error:
            raise SysrootError(f"the sysroot {digest} cannot be removed: {error.strerror}") from error
        _remove_tree(aside)
    return True


def _remove_partial(home: Path, digest: str) -> None:
    """What a builder that died has left. The lock is held."""
    for path in home.glob(f".{digest}.*"):
        _remove_tree(path)


def _remove_tree(folder: Path) -> None:
    """Remove a folder, unless something is mounted in it: that would go, too."""
    inside = [line.split()[4] for line in _MOUNTS.read_text().splitlines() if len(line.split()) > 4]
    held = [place for place in inside if place.startswith(f"{folder.resolve()}/")]
    if held:
        raise SysrootError(f"{held[0]} is mounted: unmount it, then try again")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise SysrootError(f"{folder} cannot be removed: {error.strerror}") from error


@contextlib.contextmanager
def _locked(home: Path, digest: str, tell: Progress) -> Iterator[None]:
    with _lock_file(home, digest) as lock:
        _take(lock, fcntl.LOCK_EX, tell)
        yield


@contextlib.contextmanager
def _lock_file(home: Path, digest: str) -> Iterator[IO[bytes]]:
    try:
        lock: IO[bytes] = (home / f"{digest}.lock").open("ab")
    except PermissionError as error:
        raise ProofToolsError(f"{home} belongs to another user: {error.strerror}") from error
    with lock:
        yield lock


def _take(lock: IO[bytes], how: int, tell: Progress) -> None:
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise SysrootError(f"{lock.name} has been held for {_WAIT_S / 60:.0f} minutes") from error
            tell("waiting for another that builds it", 0.0)
            time.sleep(_POLL_S)
