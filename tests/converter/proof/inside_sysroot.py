"""Danger: half a sysroot that passes for a whole one, two builders that mix theirs, or a removal that goes too far."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgewise_converter.errors import NotPreparedError, SysrootError
from edgewise_converter.proof import sysroot, tools
from edgewise_converter.proof.recipe import Recipe
from edgewise_converter.proof.sysroot import Sysroot
from edgewise_profiles import catalogue

_MOUNTS = Path("/proc/self/mountinfo")
PI = catalogue.load("raspberry-pi-4-64")

DEBIAN = """#!/bin/sh
root=
for word; do case "$word" in -) ;; /*) root="$word" ;; esac; done
cat > /dev/null
echo "I: downloading packages with apt..." >&2
mkdir -p "$root/usr/bin" && mkdir -m 1777 "$root/tmp" && echo built >> "$root/built"
sleep 0.3
{end}
"""

APART = """#!/bin/sh
while [ "$1" != mmdebstrap ]; do shift; done
exec "$@"
"""
"""Without rights of root, what goes around mmdebstrap is left out."""
MOUNTING = """
mkdir -p "$root/dev/pts" && mount -t tmpfs none "$root/dev/pts"
echo "$root" > "$(dirname "$0")/mounted"
exec sleep 600
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand-ins for what fetches and runs foreign systems; `end` says how mmdebstrap ends."""
    folder = tmp_path / "programs"
    folder.mkdir()

    def write(end: str = "exit 0") -> None:
        texts = {"mmdebstrap": DEBIAN.replace("{end}", end), "setpriv": APART, "other": "#!/bin/sh\nexit 0\n"}
        for name, text in texts.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    write()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(tools, "program", lambda name: str(folder / (name if name == "setpriv" else "other")))
    monkeypatch.setattr(tools, "check_builder", lambda _recipe: None)
    monkeypatch.setattr(tools, "debian_sources", lambda _suite, _mirror: "deb x y main\n")
    monkeypatch.setattr(sysroot, "wheels_command", lambda *_: ["other"])
    return write


def standing(home: Path, **changes: Any) -> Sysroot:
    """A sysroot as a build leaves it."""
    recipe = msgspec.structs.replace(sysroot.recipe_here(PI), **changes)
    folder = home / recipe.digest
    (folder / "root").mkdir(parents=True)
    (folder / "recipe.json").write_bytes(msgspec.json.encode(recipe))
    (home / f"{recipe.digest}.lock").touch()
    return Sysroot(folder, recipe)


def test_one_is_built_once_and_found_again(programs: Any, tmp_path: Path) -> None:
    home, told = tmp_path / "home", []
    assert sysroot.find(PI, home) is None
    with pytest.raises(NotPreparedError):
        sysroot.need(PI, home)
    made = sysroot.ensure(PI, home, lambda text, share: told.append((text, share)))
    assert made == sysroot.find(PI, home) == sysroot.ensure(PI, home)
    assert (made.root / "built").read_text() == "built\n"
    assert (made.root / "tmp").stat().st_mode & 0o7777 == 0o755
    assert "cortex-a72" in str(told)
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert "0xd08" in (made.root / "proc/cpuinfo").read_text()
    assert (made.root / "sys/devices/system/cpu/possible").read_text() == "0\n"
    assert [s.folder for s in sysroot.listing(home)] == [made.folder]


def test_a_build_that_fails_leaves_nothing_and_says_why(programs: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    programs("echo 'E: Unable to fetch some archives' >&2; echo more >&2; exit 100")
    with pytest.raises(SysrootError, match=r"could not be fetched: E: Unable to fetch some archives$"):
        sysroot.ensure(PI, home)
    assert [p for p in home.iterdir() if p.is_dir()] == []
    programs()
    assert sysroot.ensure(PI, home).root.is_dir()


def test_a_full_disk_is_told_before_anything_is_fetched(
    programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysroot, "_MIN_FREE", 1 << 62)
    with pytest.raises(SysrootError, match="MiB left"):
        sysroot.ensure(PI, tmp_path / "home")


def _ensure(home: Path) -> None:
    sysroot.ensure(PI, home)


def test_two_builders_make_one(programs: Any, tmp_path: Path) -> None:
    home, fork = tmp_path / "home", multiprocessing.get_context("fork")
    builders = [fork.Process(target=_ensure, args=(home,)) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    assert (sysroot.need(PI, home).root / "built").read_text() == "built\n"
    assert len([p for p in home.iterdir() if p.is_dir()]) == 1


def test_what_a_builder_that_died_has_left_is_removed(programs: Any, tmp_path: Path) -> None:
    digest = sysroot.recipe_here(PI).digest
    left = tmp_path / f".{digest}.abc"
    (left / "root").mkdir(parents=True)
    assert sysroot.listing(tmp_path) == []
    sysroot.ensure(PI, tmp_path)
    assert not left.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_builder_that_is_killed_leaves_no_mount_and_no_program_behind(
    programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmdebstrap mounts in what it builds: left behind, that could neither be removed nor built again."""
    home, mounted = tmp_path / "home", tmp_path / "programs/mounted"
    programs(MOUNTING)
    real = str(shutil.which("setpriv", path=os.defpath))
    with monkeypatch.context() as apart:
        apart.setattr(tools, "program", lambda name: real if name == "setpriv" else "true")
        builder = multiprocessing.get_context("fork").Process(target=_ensure, args=(home,))
        builder.start()
        try:
            while not (mounted.exists() and mounted.read_text().endswith("\n")):
                assert builder.is_alive()
            root = mounted.read_text().strip()
            assert root not in _MOUNTS.read_text()
            assert any(root in text for text in _mounts_of_all())
        finally:
            builder.kill()
            builder.join()
    deadline = time.monotonic() + 30
    while any(root in text for text in _mounts_of_all()):
        assert time.monotonic() < deadline
    programs()
    assert [sysroot.ensure(PI, home).root] == list(home.glob("*/root"))


def _mounts_of_all() -> list[str]:
    """Mounts as each process sees them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):  # it has ended
            found.append(path.read_text())
    return found


def test_pruning_removes_what_is_not_kept_and_not_in_use(tmp_path: Path) -> None:
    old, used, kept = standing(tmp_path, layout=1000), standing(tmp_path, layout=1001), standing(tmp_path)
    left = tmp_path / f".{old.recipe.digest}.x"
    left.mkdir()

    def keep(recipe: Recipe) -> bool:
        return recipe.digest == kept.recipe.digest

    with sysroot.used(used):
        assert [s.folder for s in sysroot.prune(keep, tmp_path)] == [old.folder]
    assert {s.folder for s in sysroot.listing(tmp_path)} == {used.folder, kept.folder}
    assert not left.exists()
    with pytest.raises(NotPreparedError), sysroot.used(old):
        pass
    assert [s.folder for s in sysroot.prune(keep, tmp_path)] == [used.folder]


def test_a_partial_one_of_a_builder_at_work_stays(tmp_path: Path) -> None:
    digest = sysroot.recipe_here(PI).digest
    partial = tmp_path / f".{digest}.x"
    partial.mkdir()
    with (tmp_path / f"{digest}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sysroot.prune(lambda _recipe: False, tmp_path)
        assert partial.exists()
    sysroot.prune(lambda _recipe: False, tmp_path)
    assert not partial.exists()


def test_nothing_that_is_mounted_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = standing(tmp_path, layout=1000)
    mounts = tmp_path / "mountinfo"
    aside = tmp_path.resolve() / f".{one.recipe.digest}.removed"
    mounts.write_text(f"36 35 98:0 / {aside}/root/dev rw - tmpfs tmpfs rw\n")
    monkeypatch.setattr(sysroot, "_MOUNTS", mounts)
    with pytest.raises(SysrootError, match="is mounted"):
        sysroot.prune(lambda _recipe: False, tmp_path)
    assert (aside / "root").is_dir()


def test_the_least_recently_used_go(programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysroot, "MAX_SYSROOTS", 2)
    old, newer = standing(tmp_path, layout=1000), standing(tmp_path, layout=1001)
    os.utime(old.folder / "recipe.json", (1, 1))
    made = sysroot.ensure(PI, tmp_path)
    assert {s.folder for s in sysroot.listing(tmp_path)} == {newer.folder, made.folder}
