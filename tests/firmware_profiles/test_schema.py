"""Danger: a board file with a misspelt, contradictory or impossible bound that silently binds nothing."""

from __future__ import annotations

import copy
import tomllib
from importlib.resources import files
from typing import Any

import msgspec
import pytest
from edgewise_profiles import catalogue
from edgewise_profiles.errors import NoTargetError, ProfileSchemaError
from edgewise_profiles.schema import MAX_PROFILE_BYTES, Profile, check, parse
from hypothesis import given
from hypothesis import strategies as st


def board_text(name: str) -> str:
    return (files("edgewise_profiles") / "boards" / f"{name}.toml").read_text()


def as_toml(value: Any) -> str:
    """TOML of a board, by another writer than the one who wrote the files: keys in reverse, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {as_toml(v)}" for k, v in reversed(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def rewritten(raw: dict[str, Any]) -> bytes:
    return "\n".join(f"{k} = {as_toml(v)}" for k, v in raw.items()).encode()


BOARDS = {name: tomllib.loads(board_text(name)) for name in catalogue.names()}


def tables(raw: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if isinstance(raw, dict) else []
    children = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    return found + [p for key, child in children for p in tables(child, (*path, key))]


@given(st.data())
def test_an_unknown_key_in_any_table_is_refused_and_named(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(BOARDS)))
    raw = copy.deepcopy(BOARDS[name])
    place = data.draw(st.sampled_from(tables(raw)))
    table: Any = raw
    for key in place:
        table = table[key]
    table["latencyms"] = 1
    with pytest.raises(ProfileSchemaError, match="latencyms"):
        parse(rewritten(raw), name)


@given(st.data())
def test_a_missing_table_is_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(BOARDS)))
    raw = copy.deepcopy(BOARDS[name])
    gone = data.draw(st.sampled_from(sorted(set(raw) - {"compatible", "emulation", "mcu"})))
    del raw[gone]
    with pytest.raises(ProfileSchemaError, match=gone):
        parse(rewritten(raw), name)


@given(st.sampled_from(sorted(BOARDS)))
def test_comments_layout_and_key_order_do_not_change_the_digest(name: str) -> None:
    profile = parse(rewritten(BOARDS[name]), name)
    assert profile == catalogue.load(name)
    assert profile.sha256 == catalogue.load(name).sha256


def test_content_and_id_change_the_digest() -> None:
    profile = catalogue.load("x86-64")
    raw = copy.deepcopy(BOARDS["x86-64"])
    raw["budget"]["latency_ms"] += 0.5
    assert parse(rewritten(raw), "x86-64").sha256 != profile.sha256
    assert parse(rewritten(BOARDS["x86-64"]), "other").sha256 != profile.sha256


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_arbitrary_bytes_are_refused_with_our_error(data: bytes) -> None:
    with pytest.raises(ProfileSchemaError):
        parse(data, "noise")


@given(memory=st.integers(64, 10_000), budget=st.integers(1, 20_000), size=st.integers(1, 2**21))
def test_a_budget_that_does_not_fit_the_memory_is_refused(memory: int, budget: int, size: int) -> None:
    raw = copy.deepcopy(BOARDS["x86-64"])
    raw["memory_mib"] = memory
    raw["budget"] |= {"memory_mib": budget, "model_size_kib": size}
    raw["storage"]["min_mib"] = 2**24
    fits = budget < memory and size <= budget * 1024
    if fits:
        assert parse(rewritten(raw), "x").budget.memory_mib == budget
    else:
        with pytest.raises(ProfileSchemaError, match="budget"):
            parse(rewritten(raw), "x")


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("storage", "min_mib"), 64, "storage.min_mib"),
        (("engines", 0, "below"), "1.0", "not below 1.0"),
        (("engines", 1, "name"), "onnxruntime", "one engine twice"),
        (("targets", 3, "precision"), "int4", "litert has no int4"),
        (("targets", 0, "precision"), "int8", "one form twice"),
        (("cpu", "triple"), "aarch64-linux-gnu", "cpu.triple"),
        (("wheel_tags", 0), "manylinux_2_28_aarch64", "wheel_tags"),
        (("numerics", "int8_dot_product"), True, "int8_dot_product"),
        (("cpu", "features"), ["SSE"], "features"),
        (("machine",), "armv7l", "machine"),
        (("budget", "accuracy_drop"), -1.0, "accuracy_drop"),
    ],
)
def test_a_contradiction_is_named(place: tuple[Any, ...], value: Any, named: str) -> None:
    raw = copy.deepcopy(BOARDS["x86-64"])
    table: Any = raw
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    with pytest.raises(ProfileSchemaError, match=named.replace(".", r"\.")):
        parse(rewritten(raw), "x86-64")


def test_a_file_may_not_give_itself_another_id_nor_be_huge() -> None:
    with pytest.raises(ProfileSchemaError, match="id is the file's name"):
        parse(b'id = "b"\n' + board_text("x86-64").encode(), "a")
    with pytest.raises(ProfileSchemaError, match="at most"):
        parse(b"#" * (MAX_PROFILE_BYTES + 1), "a")


@pytest.mark.parametrize("name", catalogue.names())
def test_targets_are_found_by_precision_by_form_and_by_default(name: str) -> None:
    profile = catalogue.load(name)
    assert profile.target() == profile.targets[0]
    for target in profile.targets:
        assert profile.target(f"{target.format}-{target.precision}") == target
        assert profile.target(target.precision).precision == target.precision
    with pytest.raises(NoTargetError, match="int16x8"):
        profile.target("int16x8")


def test_reduced_range_goes_with_the_lack_of_dot_products() -> None:
    reduced = {name: catalogue.load(name).numerics.reduce_range for name in catalogue.names()}
    assert reduced["x86-64"]
    assert not reduced["x86-64-vnni"]
    assert not reduced["raspberry-pi-5"]


def test_check_finds_nothing_in_the_catalogue_and_something_in_a_broken_profile() -> None:
    profile: Profile = catalogue.load("raspberry-pi-5")
    assert check(profile) == ()
    broken = msgspec.structs.replace(profile, memory_mib=100)
    assert len(check(broken)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"midr": None}, "emulation.midr"),
        ({"midr": "0x41"}, "midr"),
        ({"qemu": "cortex-a72 -semihosting"}, "qemu"),
        ({"suite": "sid"}, "suite"),
        ({"packages": ["--add"]}, "packages"),
        ({"cpu": "x"}, "cpu"),
    ],
)
def test_emulation_is_checked(change: dict[str, Any], said: str) -> None:
    raw = copy.deepcopy(BOARDS["raspberry-pi-4-64"])
    raw["emulation"] = {k: v for k, v in {**raw["emulation"], **change}.items() if v is not None}
    with pytest.raises(ProfileSchemaError, match=said):
        parse(rewritten(raw), "raspberry-pi-4-64")


def test_emulation_on_x86_has_no_register_of_arm() -> None:
    raw = copy.deepcopy(BOARDS["x86-64"])
    raw["emulation"]["midr"] = "0x410fd083"
    with pytest.raises(ProfileSchemaError, match=r"emulation\.midr"):
        parse(rewritten(raw), "x86-64")


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("mcu", "core"), "cortex-a72", "mcu.core"),
        (("mcu", "flags"), ["-mthumb"], "mcu.flags"),
        (("mcu", "flags"), ["-mcpu=cortex-m4", "-o/etc/passwd"], "mcu.flags"),
        (("mcu", "flash_kib"), 8192, "mcu.flash_kib"),
        (("mcu", "stack_kib"), 256, "mcu.stack_kib"),
        (("mcu", "emulator"), "x -serial none", "emulator"),
        (("memory_mib",), 64, "no system"),
        (("os", "name"), "linux", "no system"),
        (("targets", 0, "engine"), "litert", "c99 alone"),
    ],
)
def test_a_contradiction_of_a_microcontroller_is_named(place: tuple[Any, ...], value: Any, named: str) -> None:
    raw = copy.deepcopy(BOARDS["mps2-an386"])
    table: Any = raw
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    with pytest.raises(ProfileSchemaError, match=named.replace(".", r"\.")):
        parse(rewritten(raw), "mps2-an386")


def test_a_board_with_a_system_names_it() -> None:
    raw = copy.deepcopy(BOARDS["x86-64"])
    raw["wheel_tags"] = []
    with pytest.raises(ProfileSchemaError, match="wheel_tags"):
        parse(rewritten(raw), "x86-64")
