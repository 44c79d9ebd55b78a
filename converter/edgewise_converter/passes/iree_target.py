"""A profile's processor in IREE's and LLVM's words. Pure.

IREE compiles for exactly what it is told: a feature that is named too many stops the program on
the device, so only those are passed that the profile promises. LLVM's model of a processor is no
such promise (its cortex-a72 has the crypto extension, which the Raspberry Pi 4 has not), so the
generic one is taken and features are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgewise_profiles.schema import Machine

TRIPLES: Final[dict[Machine, str]] = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "armv7l": "armv7a-linux-gnueabihf",
    "riscv64": "riscv64-linux-gnu",
}
_BASE: Final[dict[Machine, tuple[str, ...]]] = {
    # What every Linux of this architecture may use.
    "x86_64": ("sse2",),
    "aarch64": ("fp-armv8", "neon"),
    "armv7l": (),
    "riscv64": ("m", "a", "f", "d", "c"),
}
_CPUS: Final[dict[Machine, str]] = {"x86_64": "x86-64", "aarch64": "generic", "riscv64": "generic-rv64"}
_LLVM: Final[dict[Machine, dict[str, str]]] = {
    "x86_64": {
        "pni": "sse3",
        "ssse3": "ssse3",
        "sse4_1": "sse4.1",
        "sse4_2": "sse4.2",
        "popcnt": "popcnt",
        "cx16": "cx16",
        "lahf_lm": "sahf",
        "avx": "avx",
        "avx2": "avx2",
        "fma": "fma",
        "f16c": "f16c",
        "bmi1": "bmi",
        "bmi2": "bmi2",
        "movbe": "movbe",
        "avx512f": "avx512f",
        "avx512bw": "avx512bw",
        "avx512cd": "avx512cd",
        "avx512dq": "avx512dq",
        "avx512vl": "avx512vl",
        "avx512_vnni": "avx512vnni",
        "avx_vnni": "avxvnni",
    },
    "aarch64": {"crc32": "crc", "atomics": "lse", "asimdhp": "fullfp16", "asimddp": "dotprod", "i8mm": "i8mm"},
    "armv7l": {"neon": "neon", "vfpv4": "vfp4", "idiva": "hwdiv-arm"},
    "riscv64": {},
}
"""Linux's names of features to LLVM's; those that are missing here are not used."""
_ABI: Final[dict[Machine, str]] = {"riscv64": "lp64d"}


def features_of(machine: Machine, linux: Sequence[str]) -> tuple[str, ...]:
    """LLVM's names of the features that code may use, given Linux's names of those that are there."""
    names = _LLVM.get(machine, {})
    return tuple(dict.fromkeys((*_BASE.get(machine, ()), *(names[f] for f in linux if f in names))))


def flags_of(machine: Machine, features: Sequence[str]) -> tuple[str, ...]:
    """`iree-compile`'s options for a processor.

    Args:
        machine: one of `TRIPLES`.
        features: as `features_of` gives them.
    """
    flags = [f"--iree-llvmcpu-target-triple={TRIPLES[machine]}"]
    if machine in _CPUS:
        flags.append(f"--iree-llvmcpu-target-cpu={_CPUS[machine]}")
    if features:
        flags.append(f"--iree-llvmcpu-target-cpu-features={','.join(f'+{name}' for name in features)}")
    if machine in _ABI:
        flags.append(f"--iree-llvmcpu-target-abi={_ABI[machine]}")
    return tuple(flags)


def engine_range(version: str) -> tuple[str, str]:
    """Runtimes that read what the compiler `version` wrote: its own minor version, from the compiler's patch on.

    IREE promises no compatibility of its modules between minor versions.
    """
    major, minor, *_ = (*version.split("+")[0].split("."), "0")
    return version.split("+")[0], f"{major}.{int(minor) + 1}"
