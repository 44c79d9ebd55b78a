"""Danger: a damaged entry that is believed, one that outlives what it was made from, or a cache without an end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from edgewise_converter import cache
from edgewise_converter.cache import Cache, key_of

KEY = key_of("a")


def entries(root: Path) -> list[Path]:
    return [p for p in root.rglob("*") if p.is_file()]


def test_an_entry_comes_back_whole(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    assert store.get("scores", KEY) is None
    store.put("scores", KEY, b"payload")
    assert store.get("scores", KEY) == b"payload"
    assert store.get("artifacts", KEY) is None
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d[:40] + b"X" + d[41:], lambda d: b"", lambda d: d + b"x"]
)
def test_a_damaged_entry_is_noticed_and_removed(tmp_path: Path, damage: object) -> None:
    store = Cache(tmp_path)
    store.put("scores", KEY, b"payload and more")
    (path,) = entries(tmp_path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert store.get("scores", KEY) is None
    assert entries(tmp_path) == []
    store.put("scores", KEY, b"again")
    assert store.get("scores", KEY) == b"again"


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = Cache(tmp_path, max_bytes=3 * 1032)
    keys = [key_of(str(i)) for i in range(4)]
    for moment, key in enumerate(keys[:3]):
        store.put("artifacts", key, bytes(1000))
        (path,) = tmp_path.glob(f"artifacts/*/{key}")
        os.utime(path, (moment, moment))
    assert store.get("artifacts", keys[0]) is not None, "a use counts"
    store.put("artifacts", keys[3], bytes(1000))
    assert [store.get("artifacts", key) is not None for key in keys] == [True, False, True, True]


def test_what_is_too_large_or_cannot_be_written_is_not_kept_and_fails_nothing(tmp_path: Path) -> None:
    Cache(tmp_path, max_bytes=10).put("a", KEY, bytes(11))
    assert entries(tmp_path) == []
    (tmp_path / "file").write_text("")
    blocked = Cache(tmp_path / "file")
    blocked.put("a", KEY, b"x")
    assert blocked.get("a", KEY) is None
    nothing = Cache(None)
    nothing.put("a", KEY, b"x")
    assert nothing.get("a", KEY) is None


def test_keys_tell_parts_apart_and_hold_the_converter_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_of("ab", "c") != key_of("a", "bc")
    before = key_of("a")
    monkeypatch.setattr(cache, "made_by", lambda: "another converter")
    assert key_of("a") != before


def test_the_place_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path))
    assert cache.default_root() == tmp_path / "converter"
    monkeypatch.delenv("EDGEWISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_root() == tmp_path / "edgewise" / "converter"
