"""Wheels that no index has, built here for another machine: the board's compiler, headers and build settings.

A source distribution is built by its own back end, in a process whose `sysconfig` is the board's. That is how
CPython itself is cross-compiled (`_PYTHON_HOST_PLATFORM`, `_PYTHON_SYSCONFIGDATA_NAME`; CPython's configure.ac). What
was built is kept by everything that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgewise_cli import files
from edgewise_cli.agent_package import debian
from edgewise_cli.agent_package.needs import DEBIAN, Needs, Release, Source
from edgewise_cli.agent_package.pip import pip, run
from edgewise_cli.errors import NotInstalledError, RefusedError

TRIPLES: Final = {"armv7l": "arm-linux-gnueabihf"}
_RECIPE: Final = 1
"""Raised with every change of what is built how."""
_DATE: Final = "1577836800"
_FLAGS: Final = "-O2 -g0 -DNDEBUG -fwrapv"
"""As Debian's own Python is compiled. Without NDEBUG the paths of headers are in the result."""
_MAX_WHEEL: Final = 64 << 20
_BUILD: Final = (
    "import importlib, sys; name, _, inner = sys.argv[1].partition(':'); back = importlib.import_module(name); "
    "back = getattr(back, inner) if inner else back; back.build_wheel(sys.argv[2])"
)


def build(needs: Needs, release: Release, folder: Path, tell: Callable[[str], None]) -> None:
    """Put wheels of the release's sources into `folder`.

    Raises:
        NotInstalledError: the compiler is missing, or this Python is not the board's version.
        CliError: a source cannot be fetched or built.
    """
    triple = TRIPLES[needs.profile.machine]
    compiler = _compiler(triple, needs.python)
    target: Path | None = None
    with tempfile.TemporaryDirectory(prefix="edgewise-cross-") as name:
        work = Path(name)
        for source in release.sources:
            place = _place(source, needs, compiler)
            if not place.is_file():
                if target is None:
                    tell("fetching the board's Python headers")
                    target = _headers(work, release, needs)
                tell(f"building {source.distribution} {source.version} for {needs.profile.machine}")
                files.write(place, _build(source, needs, triple, target, work))
            shutil.copyfile(place, folder / _file_name(source, needs))


def cache() -> Path:
    """Where built wheels are kept: `$EDGEWISE_CACHE/wheels`, else `~/.cache/edgewise/wheels`."""
    named, home = os.environ.get("EDGEWISE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = Path(named) if named else (Path(home) if home else Path.home() / ".cache") / "edgewise"
    return root / "wheels"


def _compiler(triple: str, python: str) -> str:
    """The compiler's version; raises `NotInstalledError`."""
    tool = f"{triple}-gcc"
    if shutil.which(tool) is None:
        raise NotInstalledError(
            f"{tool} is missing: apt-get install gcc-{triple} libc6-dev-armhf-cross; or give built wheels with --wheels"
        )
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if mine != python:
        raise NotInstalledError(f"wheels for Python {python} are built by the same version; this is Python {mine}")
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.partition("\n")[0]


def _place(source: Source, needs: Needs, compiler: str) -> Path:
    says = [
        _RECIPE,
        _FLAGS,
        source.distribution,
        source.version,
        source.sha256,
        needs.abi,
        needs.profile.machine,
        compiler,
    ]
    key = hashlib.sha256(json.dumps(says).encode()).hexdigest()[:32]
    return cache() / key / _file_name(source, needs)


def _file_name(source: Source, needs: Needs) -> str:
    return f"{source.distribution}-{source.version}-{needs.abi}-{needs.abi}-linux_{needs.profile.machine}.whl"


def _headers(work: Path, release: Release, needs: Needs) -> Path:
    """A folder with the board's `usr/include` and `sysconfig` data."""
    into, debs = work / "target", work / "debs"
    for folder in (into, debs):
        folder.mkdir()
    names = (f"libpython{needs.python}-dev", f"libpython{needs.python}-minimal")
    for deb in debian.fetch(names, release.suite, DEBIAN[needs.profile.machine], debs):
        debian.unpack(deb, into)
    return into


def _build(source: Source, needs: Needs, triple: str, target: Path, work: Path) -> bytes:
    home = work / source.distribution
    for part in ("sdist", "tools", "out", "settings"):
        (home / part).mkdir(parents=True)
    wanted = home / "requirements.txt"
    wanted.write_text(f"{source.distribution}=={source.version} --hash=sha256:{source.sha256}\n")
    what = f"fetching the sources of {source.distribution} {source.version}"
    pip(["download", "--no-deps", "--no-binary=:all:", f"--dest={home / 'sdist'}", f"--requirement={wanted}"], what)
    tree = _unpack(next((home / "sdist").iterdir()), home / "tree")
    system = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8")).get("build-system", {})
    tools = [str(need) for need in system.get("requires", ["setuptools"])]
    pip(["install", f"--target={home / 'tools'}", *tools], f"installing what builds {source.distribution}")
    settings = f"_sysconfigdata__{triple}"
    shutil.copy(target / f"usr/lib/python{needs.python}/{settings}.py", home / "settings")
    include = target / "usr/include"
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))},
        "PYTHONPATH": f"{home / 'tools'}{os.pathsep}{home / 'settings'}",
        "_PYTHON_HOST_PLATFORM": f"linux-{needs.profile.machine}",
        "_PYTHON_SYSCONFIGDATA_NAME": settings,
        "CC": f"{triple}-gcc",
        "LDSHARED": f"{triple}-gcc -shared -Wl,--build-id=none -s",
        "CFLAGS": f"{_FLAGS} -I{include}/python{needs.python} -I{include} -ffile-prefix-map={work}=.",
        "SOURCE_DATE_EPOCH": _DATE,
    }
    backend = str(system.get("build-backend", "setuptools.build_meta"))
    run(["-c", _BUILD, backend, str(home / "out")], f"building {source.distribution}", env, tree)
    made = list((home / "out").glob("*.whl"))
    if len(made) != 1 or made[0].name != _file_name(source, needs):
        raise RefusedError(
            f"building {source.distribution} gave {[m.name for m in made]}, not {_file_name(source, needs)}",
            code="wheel-build",
        )
    return files.read(made[0], _MAX_WHEEL)


def _unpack(sdist: Path, into: Path) -> Path:
    try:
        with tarfile.open(sdist) as archive:
            archive.extractall(into, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise RefusedError(f"{sdist.name} cannot be unpacked: {error}", code="wheel-build") from error
    return next(path for path in into.iterdir() if path.is_dir())
