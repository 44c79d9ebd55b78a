"""The danger: a wheel that writes outside of its slot or fills the disk, and a slot that is half there."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgewise_agent.errors import DiskSpaceError
from edgewise_agent.selfupdate import boot as boots
from edgewise_agent.selfupdate import wheels as unpacking
from edgewise_agent.selfupdate.errors import WheelError
from edgewise_agent.selfupdate.slots import Mark, Slots
from edgewise_agent.selfupdate.wheels import Allowance, unpack
from edgewise_protocol.manifest import AgentSpec, WheelSpec
from hypothesis import given
from hypothesis import strategies as st

SPEC = AgentSpec(
    version="0.2.0",
    wheels=tuple(
        WheelSpec(file=f"{name}.whl", distribution=name, version="1", tags=("py3-none-any",)) for name in ("one", "two")
    ),
)
MARK = Mark(sha256="1" * 64, version=2000, agent_version="0.2.0")


def wheel(path: Path, files: dict[str, bytes], link: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def test_packages_are_unpacked_and_nothing_else(tmp_path: Path, site: Path) -> None:
    files = {
        "p/__init__.py": b"x",
        "p-1.data/purelib/p/pure.py": b"y",
        "p-1.data/platlib/p/native.so": b"z",
        "p-1.data/scripts/run-me": b"#!",
        "p-1.data/data/etc/file": b"!",
    }
    unpack(wheel(tmp_path / "w.whl", files), site, Allowance())
    found = sorted(str(path.relative_to(site)) for path in site.rglob("*") if path.is_file())
    assert found == ["p/__init__.py", "p/native.so", "p/pure.py"]


@pytest.mark.parametrize(
    "name", ["../out", "/etc/out", "p/../../out", "p\\..\\out", "p-1.data/purelib/../../out", "p-1.data/platlib//../x"]
)
def test_no_file_leaves_the_slot(tmp_path: Path, site: Path, name: str) -> None:
    with pytest.raises(WheelError, match="path"):
        unpack(wheel(tmp_path / "w.whl", {name: b"x"}), site, Allowance())
    assert {path.name for path in tmp_path.iterdir()} == {"site", "w.whl"}


def test_links_and_files_that_are_twice_there_are_refused(tmp_path: Path, site: Path) -> None:
    with pytest.raises(WheelError, match="link"):
        unpack(wheel(tmp_path / "l.whl", {}, link="p/link"), site, Allowance())
    left = Allowance()
    unpack(wheel(tmp_path / "a.whl", {"p.py": b"x"}), site, left)
    with pytest.raises(WheelError, match="same file"):
        unpack(wheel(tmp_path / "b.whl", {"p.py": b"y"}), site, left)
    assert (site / "p.py").read_bytes() == b"x"


def test_what_a_wheel_unpacks_to_is_bounded(tmp_path: Path, site: Path) -> None:
    bomb = wheel(tmp_path / "w.whl", {"p.py": b"0" * 5_000_000})
    assert bomb.stat().st_size < 10_000
    with pytest.raises(WheelError, match="more than"):
        unpack(bomb, site, Allowance(size=1_000_000))
    with pytest.raises(WheelError, match="more than"):
        unpack(wheel(tmp_path / "m.whl", {f"p{n}": b"" for n in range(4)}), site, Allowance(files=3))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("w") / "w.whl"
    path.write_bytes(data)
    with pytest.raises(WheelError):
        unpacking.unpacked_bytes(path)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("one", "two"):
        wheel(folder / f"{name}.whl", {f"{name}/__init__.py": name.encode()})
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    (folder / "agent").mkdir(parents=True)
    return folder


def test_a_slot_is_found_once_it_is_whole(state: Path, store: Path) -> None:
    asked: list[int] = []
    slots = Slots(state, asked.append)
    assert (slots.mark("a"), slots.find(MARK.sha256), slots.mark(boots.BASE)) == (None, None, None)
    slots.fill("a", MARK, SPEC, store)
    assert (slots.mark("a"), slots.find(MARK.sha256)) == (MARK, "a")
    assert (boots.site_of(state, "a") / "two" / "__init__.py").read_bytes() == b"two"
    assert asked == [6]
    (state / "agent" / "slots" / "a" / "slot.json").write_bytes(b"{")
    assert slots.find(MARK.sha256) is None


def test_a_slot_that_cannot_be_filled_leaves_the_old_one(state: Path, store: Path) -> None:
    slots = Slots(state, lambda _: None)
    slots.fill("b", MARK, SPEC, store)
    (store / "two.whl").write_bytes(b"damaged")
    newer = Mark(sha256="2" * 64, version=3000, agent_version="0.3.0")
    with pytest.raises(WheelError):
        slots.fill("b", newer, SPEC, store)
    assert slots.mark("b") == MARK
    assert [path.name for path in (state / "agent" / "slots").iterdir()] == ["b"]


def test_a_full_disk_is_seen_before_anything_is_written(state: Path, store: Path) -> None:
    def full(_: int) -> None:
        raise DiskSpaceError("full")

    check: Callable[[int], Any] = full
    with pytest.raises(DiskSpaceError):
        Slots(state, check).fill("a", MARK, SPEC, store)
    assert not (state / "agent" / "slots").exists()
