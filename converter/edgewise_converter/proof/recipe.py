"""What a profile's sysroot is made of: from the profile, and the engines' versions that the converter has. Pure.

A sysroot is a small Debian system of the target's architecture, with the engines in their own
wheels. `/proc/cpuinfo` and a few files of `/sys` are plain files in it: the engines choose their
kernels by what stands there, which must be the board's, not the host's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec
from edgewise_profiles.schema import DEBIAN_ARCHITECTURES, Engine, Machine, Profile

from edgewise_converter.errors import NoEmulationError
from edgewise_converter.proof.runner import DISTRIBUTIONS

WHEELS: Final = "opt/edgewise"
"""Where the engines' wheels are, in a sysroot."""
_LAYOUT: Final = 1
"""Raised when sysroots of before no longer do."""
_PACKAGES: Final = ("python3", "libstdc++6", "dash")
_PYTHON: Final = {"bookworm": "3.11", "trixie": "3.13"}
_USED: Final = ("ctypes", "importlib.metadata", "json", "mmap", "numpy", "platform")
"""By the runner."""
_MODULES: Final = {
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "iree-base-runtime": "iree.runtime",
}
_QEMU: Final[dict[Machine, str]] = {
    "x86_64": "x86_64",
    "aarch64": "aarch64",
    "armv7l": "arm",
    "riscv64": "riscv64",
}
_MULTIARCH: Final[dict[Machine, str]] = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "armv7l": "arm-linux-gnueabihf",
    "riscv64": "riscv64-linux-gnu",
}


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """All that a sysroot's content depends on, but for the day on which Debian is asked."""

    layout: int = _LAYOUT
    profile: str
    machine: Machine
    cpu: str
    """As `qemu-<machine> -cpu` takes it."""
    suite: str
    packages: tuple[str, ...]
    """Of Debian."""
    python: str
    wheel_tags: tuple[str, ...]
    requirements: tuple[str, ...]
    """Of Python wheels, as pip takes them."""
    with_dependencies: bool
    """False where Debian's packages bring what the wheels need."""
    cpuinfo: str
    """Of /proc/cpuinfo."""

    @property
    def digest(self) -> str:
        """Names the sysroot's folder."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:32]

    @property
    def architecture(self) -> str:
        """As Debian calls it."""
        return DEBIAN_ARCHITECTURES[self.machine]

    @property
    def qemu(self) -> str:
        """The emulator's program."""
        return f"qemu-{_QEMU[self.machine]}-static"

    @property
    def libraries(self) -> tuple[str, ...]:
        """Folders that Debian's alternatives would link to, if anything of the target were run while building."""
        triple = _MULTIARCH[self.machine]
        return (f"/usr/lib/{triple}/blas", f"/usr/lib/{triple}/lapack")


def recipe_of(profile: Profile, installed: Mapping[str, str]) -> Recipe:
    """The recipe of a profile's sysroot.

    Args:
        profile: what is stood for.
        installed: versions of distributions on this host. An engine whose version the profile
            allows is taken in that version, so that a difference is the processor's alone.

    Raises:
        NoEmulationError: the profile cannot be emulated.
    """
    emulation = profile.emulation
    if profile.mcu is not None:
        raise NoEmulationError(f"{profile.id} needs no sysroot: its firmware is proven in qemu-system-arm as it is")
    if emulation is None:
        raise NoEmulationError(
            f"{profile.id} cannot be emulated: its profile names no emulator, since none has what the processor "
            "has, or no engine is to be had there. Its bundles are proven on a machine of its kind"
        )
    python = _PYTHON[emulation.suite]
    own_numpy = "python3-numpy" in emulation.packages
    requirements = [requirement(engine, installed) for engine in profile.engines if engine.name in DISTRIBUTIONS]
    if not own_numpy:
        requirements.append(f"numpy=={installed['numpy']}" if "numpy" in installed else "numpy")
    return Recipe(
        profile=profile.id,
        machine=profile.machine,
        cpu=emulation.qemu,
        suite=emulation.suite,
        packages=(*_PACKAGES, *emulation.packages),
        python=python,
        wheel_tags=profile.wheel_tags,
        requirements=tuple(requirements),
        with_dependencies=not own_numpy,
        cpuinfo=cpuinfo(profile),
    )


def requirement(engine: Engine, installed: Mapping[str, str]) -> str:
    """An engine's wheel, as pip takes it: this host's version where the profile allows it."""
    name = DISTRIBUTIONS[engine.name]
    here = installed.get(name, "")
    if here and _numbers(engine.min) <= _numbers(here) < _numbers(engine.below):
        return f"{name}=={here}"
    return f"{name}>={engine.min},<{engine.below}"


def cpuinfo(profile: Profile) -> str:
    """/proc/cpuinfo of one of the profile's processors, as its Linux writes it."""
    features = " ".join((*profile.cpu.features, *profile.cpu.any_of[:1]))
    emulation = profile.emulation
    if emulation is None or emulation.midr is None:
        return f"processor\t: 0\nmodel name\t: {profile.cpu.model}\nflags\t\t: {features}\n\n"
    midr = int(emulation.midr, 16)
    fields = {
        "processor\t": "0",
        "BogoMIPS\t": "108.00",
        "Features\t": features,
        "CPU implementer\t": f"0x{midr >> 24:02x}",
        "CPU architecture": "8" if profile.machine == "aarch64" else "7",
        "CPU variant\t": f"0x{midr >> 20 & 0xF:x}",
        "CPU part\t": f"0x{midr >> 4 & 0xFFF:03x}",
        "CPU revision\t": f"{midr & 0xF}",
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"


def debootstrap_command(recipe: Recipe, root: str) -> list[str]:
    """Unpacks Debian into a folder, and runs nothing of the target. Sources come by the standard input.

    It mounts in the folder. What it mounts nobody else sees, and goes with it; it goes with this process, even killed.
    """
    return [
        *("setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        "mmdebstrap",
        "--mode=root",
        "--variant=extract",
        f"--architectures={recipe.architecture}",
        f"--include={','.join(recipe.packages)}",
        "--aptopt=Acquire::Retries 3",
        recipe.suite,
        root,
        "-",
    ]


def wheels_command(recipe: Recipe, python: str, root: str) -> list[str]:
    """Unpacks the engines' wheels of the target into a sysroot."""
    abi = f"cp{recipe.python.replace('.', '')}"
    tags = [f"--platform={tag}" for tag in recipe.wheel_tags]
    return [
        *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile"),
        *("--only-binary=:all:", f"--target={root}/{WHEELS}", *tags),
        *(f"--python-version={recipe.python}", "--implementation=cp"),
        *(f"--abi={abi}", "--abi=abi3", "--abi=none"),
        *(() if recipe.with_dependencies else ("--no-deps",)),
        *recipe.requirements,
    ]


def warming_command(recipe: Recipe, root: str) -> list[str]:
    """Loads every engine once on the emulated processor, as root, so that Python keeps what it compiles."""
    engines = [name.split("=")[0].split(">")[0] for name in recipe.requirements]
    modules = [*_USED, *(_MODULES[name] for name in engines)]
    code = f"import sys; sys.path[:0] = ['/{WHEELS}']\nfor name in {modules!r}: __import__(name)"
    return [
        *("unshare", "--net", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "chroot", root),
        *(f"/usr/bin/{recipe.qemu}", "-cpu", recipe.cpu, "-E", f"LD_LIBRARY_PATH={':'.join(recipe.libraries)}"),
        *(f"/usr/bin/python{recipe.python}", "-I", "-c", code),
    ]


def _numbers(version: str) -> tuple[int, ...]:
    """The numeric beginning of a version; a trailing zero is no part of it."""
    found = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
        if digits != part:
            break
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)
