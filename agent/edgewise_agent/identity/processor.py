"""The processor that this process sees: its machine and its features. Pure, but for what is handed in.

A 32-bit system may run under a 64-bit kernel, as Raspberry Pi OS does on a Pi 4. There `uname` says `aarch64` and
/proc/cpuinfo names 64-bit features, none of which hold for a 32-bit process. What a process may use is in its
auxiliary vector (`AT_HWCAP`), under emulation too, where /proc/cpuinfo is the host's.

Sources: Linux, arch/arm/include/uapi/asm/hwcap.h and arch/arm64/include/uapi/asm/hwcap.h; getauxval(3).
"""

from __future__ import annotations

import struct
from typing import Final

POINTER_BITS: Final = struct.calcsize("P") * 8
_AT_HWCAP: Final = 16
_ARM32: Final = frozenset({"aarch64", "armv8l", "armv7l"})
_HWCAP: Final[dict[str, tuple[str, ...]]] = {
    # Bit 0 first; empty where the kernel has no name, or none that a program could use.
    "armv7l": (
        *("swp", "half", "thumb", "26bit", "fastmult", "fpa", "vfp", "edsp", "java", "iwmmxt", "crunch"),
        *("thumbee", "neon", "vfpv3", "vfpv3d16", "tls", "vfpv4", "idiva", "idivt", "vfpd32", "lpae", "evtstrm"),
        *("fphp", "asimdhp", "asimddp", "asimdfhm", "asimdbf16", "i8mm"),
    ),
    "aarch64": (
        *("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "cpuid"),
        *("asimdrdm", "jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4", "asimddp", "sha512", "sve"),
        *("asimdfhm", "dit", "uscat", "ilrcpc", "flagm", "ssbs", "sb", "paca", "pacg"),
    ),
}


def machine_of(uname: str, bits: int = POINTER_BITS) -> str:
    """The machine of a process: `armv7l` for a 32-bit one on any 64-bit Arm kernel.

    Args:
        uname: as `platform.machine()` says it.
        bits: of a pointer of the process.
    """
    return "armv7l" if bits == 32 and uname in _ARM32 else uname


def features_of(machine: str, cpuinfo: str, auxv: bytes, bits: int = POINTER_BITS) -> tuple[str, ...]:
    """CPU features as the kernel spells them.

    Args:
        machine: as `machine_of` gives it.
        cpuinfo: /proc/cpuinfo.
        auxv: /proc/self/auxv, pairs of native words.
        bits: of a word of the process.
    """
    listed = _listed(cpuinfo)
    if machine == "armv7l" or (machine == "aarch64" and "Features" not in listed):
        return _from_auxv(machine, auxv, bits) or listed.get("Features", ())
    return next((listed[name] for name in ("flags", "Features", "isa") if name in listed), ())


def _listed(cpuinfo: str) -> dict[str, tuple[str, ...]]:
    """The first processor's feature lines by their name."""
    found: dict[str, tuple[str, ...]] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features", "isa"):
            found.setdefault(name.strip(), tuple(value.split()))
    return found


def _from_auxv(machine: str, auxv: bytes, bits: int) -> tuple[str, ...]:
    word = "I" if bits == 32 else "Q"
    size = struct.calcsize(f"={word}{word}")
    for kind, value in struct.iter_unpack(f"={word}{word}", auxv[: len(auxv) // size * size]):
        if kind == _AT_HWCAP:
            return tuple(name for bit, name in enumerate(_HWCAP[machine]) if name and value >> bit & 1)
    return ()
