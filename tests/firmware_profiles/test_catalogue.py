"""Danger: a board's facts drift from the real board, or a board vanishes from the installed package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from edgewise_profiles import catalogue, listing
from edgewise_profiles.errors import ProfileSchemaError, UnknownProfileError

EXPECTED = (
    "mps2-an386",
    "mps3-an547",
    "raspberry-pi-32",
    "raspberry-pi-4-64",
    "raspberry-pi-5",
    "raspberry-pi-zero-2-w",
    "visionfive-2",
    "x86-64",
    "x86-64-vnni",
)


def test_the_catalogue_holds_every_board() -> None:
    assert catalogue.names() == EXPECTED
    assert tuple(p.id for p in catalogue.load_all()) == EXPECTED


@pytest.mark.parametrize(
    ("name", "compatible", "features", "absent", "default"),
    [
        ("mps2-an386", None, set(), {"neon"}, "c99-int8"),
        ("mps3-an547", None, set(), {"neon"}, "c99-int8"),
        ("raspberry-pi-32", "raspberrypi,2-model-b", {"neon", "vfpv4"}, {"asimd"}, "tflite-int8"),
        ("raspberry-pi-4-64", "raspberrypi,4-model-b", {"asimd", "crc32"}, {"asimddp", "aes"}, "tflite-int8"),
        ("raspberry-pi-5", "raspberrypi,5-model-b", {"asimddp", "asimdhp", "atomics"}, {"sve"}, "onnx-float16"),
        ("raspberry-pi-zero-2-w", "raspberrypi,model-zero-2-w", {"asimd"}, {"asimddp", "aes"}, "tflite-int8"),
        ("visionfive-2", "starfive,visionfive-2-v1.3b", set(), {"asimd"}, "vmfb-float32"),
        ("x86-64", None, {"sse4_2", "popcnt"}, {"avx2"}, "onnx-float32"),
        ("x86-64-vnni", None, {"avx2", "fma"}, {"avx512f"}, "onnx-int8"),
    ],
)
def test_the_boards_are_what_linux_says_of_them(
    name: str, compatible: str | None, features: set[str], absent: set[str], default: str
) -> None:
    profile = catalogue.load(name)
    assert profile.all_compatible[0] == name
    assert compatible is None or profile.compatible[0] == compatible
    assert features <= set(profile.cpu.features)
    assert not absent & set(profile.cpu.features)
    assert f"{profile.targets[0].format}-{profile.targets[0].precision}" == default


def test_vnni_is_either_of_its_two_names() -> None:
    assert set(catalogue.load("x86-64-vnni").cpu.any_of) == {"avx512_vnni", "avx_vnni"}


@pytest.mark.parametrize("name", ["", "x86", "../x86-64", "X86-64", "x86-64.toml"])
def test_an_unknown_name_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(UnknownProfileError, match="raspberry-pi-zero-2-w"):
        catalogue.load(name)


def test_a_row_has_a_cell_for_each_heading_and_tells_the_default_first() -> None:
    for profile in catalogue.load_all():
        row = listing.row(profile)
        assert len(row) == len(listing.HEADER)
        assert row[0] == profile.id
        assert row[4].startswith(f"{profile.targets[0].format}-{profile.targets[0].precision}")


def test_microcontrollers_have_memory_in_kib_and_no_system() -> None:
    for name, core in (("mps2-an386", "cortex-m4"), ("mps3-an547", "cortex-m55")):
        profile = catalogue.load(name)
        assert profile.mcu is not None and profile.mcu.core == core
        assert (profile.os.name, profile.wheel_tags, profile.emulation) == ("none", (), None)
        row = listing.row(profile)
        assert "256 KiB" in row[3] and "stack" in row[5]


BOARD = (files("edgewise_profiles") / "boards" / "x86-64.toml").read_text()


def test_a_profile_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "kiosk-3.toml"
    path.write_text(BOARD)
    profile = catalogue.load_file(path)
    assert profile.id == profile.all_compatible[0] == "kiosk-3"
    assert profile.targets == catalogue.load("x86-64").targets
    assert profile.sha256 != catalogue.load("x86-64").sha256


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("kiosk.toml", BOARD + "\n[fan]\nspeed = 3\n", "unknown field `fan`"),
        ("kiosk.toml", BOARD + "# " + "x" * 70_000, "at most"),
        ("x86-64.toml", BOARD, "give the file a name of its own"),
        ("no id.toml", BOARD, r"\$\.id"),
        ("gone.toml", None, "No such file"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_by_name(tmp_path: Path, name: str, text: str | None, named: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ProfileSchemaError, match=named):
        catalogue.load_file(tmp_path / name)
