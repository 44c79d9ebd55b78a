"""Danger: a sysroot that is another processor than the board, or that is taken for one of other engines."""

from __future__ import annotations

import msgspec
import pytest
from edgewise_converter.errors import NoEmulationError
from edgewise_converter.proof.recipe import (
    cpuinfo,
    debootstrap_command,
    recipe_of,
    requirement,
    warming_command,
    wheels_command,
)
from edgewise_profiles import catalogue
from edgewise_profiles.schema import Engine

HERE = {"onnxruntime": "1.32.0", "ai-edge-litert": "2.3.0", "iree-base-runtime": "3.13.0", "numpy": "2.4.6"}


def test_the_engines_have_this_hosts_versions_so_that_a_difference_is_the_processors() -> None:
    recipe = recipe_of(catalogue.load("raspberry-pi-4-64"), HERE)
    assert set(recipe.requirements) == {f"{name}=={version}" for name, version in HERE.items()}
    assert (recipe.cpu, recipe.architecture, recipe.qemu) == ("cortex-a72", "arm64", "qemu-aarch64-static")


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        ("1.22", "onnxruntime==1.22"),
        ("1.22.0", "onnxruntime==1.22.0"),
        ("1.21.9", "onnxruntime>=1.22,<2"),
        ("2.0.0", "onnxruntime>=1.22,<2"),
        ("2.0rc1", "onnxruntime>=1.22,<2"),
        ("", "onnxruntime>=1.22,<2"),
    ],
)
def test_a_version_that_the_profile_does_not_allow_is_not_taken(here: str, expected: str) -> None:
    engine = Engine(name="onnxruntime", min="1.22", below="2")
    assert requirement(engine, {"onnxruntime": here} if here else {}) == expected


def test_another_engine_processor_or_package_is_another_sysroot() -> None:
    pi4, pi5 = catalogue.load("raspberry-pi-4-64"), catalogue.load("raspberry-pi-5")
    one = recipe_of(pi4, HERE)
    assert one.digest == recipe_of(pi4, dict(reversed(HERE.items()))).digest
    others = [
        recipe_of(pi4, HERE | {"onnxruntime": "1.33.0"}),
        recipe_of(pi5, HERE),
        msgspec.structs.replace(one, suite="trixie"),
        msgspec.structs.replace(one, packages=(*one.packages, "python3-numpy")),
        msgspec.structs.replace(one, layout=one.layout + 1),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_cpuinfo_is_the_boards() -> None:
    lines = dict(line.split(":", 1) for line in cpuinfo(catalogue.load("raspberry-pi-5")).splitlines() if line)
    found = {name.strip(): value.strip() for name, value in lines.items()}
    assert found["CPU implementer"] == "0x41"
    assert found["CPU part"] == "0xd0b"
    assert (found["CPU variant"], found["CPU revision"]) == ("0x4", "1")
    assert "asimddp" in found["Features"].split()
    assert "asimddp" not in cpuinfo(catalogue.load("raspberry-pi-4-64"))


def test_a_processor_that_no_emulator_has_is_refused() -> None:
    with pytest.raises(NoEmulationError, match="x86-64-vnni cannot be emulated"):
        recipe_of(catalogue.load("x86-64-vnni"), HERE)
    with pytest.raises(NoEmulationError, match="mps2-an386 needs no sysroot"):
        recipe_of(catalogue.load("mps2-an386"), HERE)


def test_what_debian_brings_is_not_asked_of_pip() -> None:
    recipe = recipe_of(catalogue.load("raspberry-pi-32"), HERE)
    command = wheels_command(recipe, "python", "/r")
    assert "--no-deps" in command
    assert not any(word.startswith("numpy") for word in command)
    assert "tflite-runtime>=2.14,<3" in command
    assert "python3-numpy" in next(w for w in debootstrap_command(recipe, "/r") if w.startswith("--include="))


@pytest.mark.parametrize("profile", [p for p in catalogue.load_all() if p.emulation], ids=lambda p: p.id)
def test_every_profile_that_can_be_emulated_has_whole_commands(profile: object) -> None:
    recipe = recipe_of(profile, HERE)  # type: ignore[arg-type]
    built = debootstrap_command(recipe, "/r")
    assert "--kill-child" in built[: built.index("mmdebstrap")]
    assert built[-3:] == [recipe.suite, "/r", "-"]
    assert not any("://" in word for word in built)
    wheels = wheels_command(recipe, "python", "/r")
    assert "--only-binary=:all:" in wheels
    assert [w.removeprefix("--platform=") for w in wheels if w.startswith("--platform=")] == list(recipe.wheel_tags)
    warm = warming_command(recipe, "/r")
    assert warm[warm.index("-cpu") + 1] == recipe.cpu
    assert "--net" in warm
