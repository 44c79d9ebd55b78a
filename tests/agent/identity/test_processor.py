"""Danger: a 32-bit system says that it is a 64-bit board, or an emulated one has the features of its host."""

from __future__ import annotations

import struct

import pytest
from edgewise_agent.identity.processor import features_of, machine_of

PI4_64_CPUINFO = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n"
X86_CPUINFO = "processor\t: 0\nflags\t\t: fpu vme sse2 avx2\n"
PI2 = "swp half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm"


def auxv(hwcap: int, word: str) -> bytes:
    """A vector as the kernel writes it: page size, HWCAP, the end."""
    return struct.pack(f"={word * 6}", 6, 4096, 16, hwcap, 0, 0)


@pytest.mark.parametrize(
    ("uname", "bits", "machine"),
    [
        ("aarch64", 64, "aarch64"),
        ("aarch64", 32, "armv7l"),
        ("armv8l", 32, "armv7l"),
        ("armv7l", 32, "armv7l"),
        ("armv6l", 32, "armv6l"),
        ("x86_64", 64, "x86_64"),
    ],
)
def test_a_32_bit_process_is_on_a_32_bit_machine_whatever_the_kernel(uname: str, bits: int, machine: str) -> None:
    assert machine_of(uname, bits) == machine


def test_a_32_bit_process_has_the_features_that_the_kernel_grants_it() -> None:
    # The word that a 32-bit kernel gives on a Pi 2.
    bits = sum(1 << bit for bit in (0, 1, 2, 4, 6, 7, 12, 13, 15, 16, 17, 18, 19, 20, 21))
    assert " ".join(features_of("armv7l", PI4_64_CPUINFO, auxv(bits, "I"), 32)) == PI2


def test_an_emulated_process_does_not_have_its_hosts_features() -> None:
    assert features_of("aarch64", X86_CPUINFO, auxv(0b1000_1000_0011, "Q"), 64) == ("fp", "asimd", "crc32", "cpuid")


def test_a_board_is_taken_at_its_kernels_word() -> None:
    assert features_of("aarch64", PI4_64_CPUINFO, auxv(1, "Q"), 64) == ("fp", "asimd", "evtstrm", "crc32", "cpuid")
    assert features_of("x86_64", X86_CPUINFO, auxv(1, "Q"), 64) == ("fpu", "vme", "sse2", "avx2")


@pytest.mark.parametrize("vector", [b"", b"\x10\0\0", auxv(0, "I")])
def test_without_a_vector_what_cpuinfo_says_stands(vector: bytes) -> None:
    assert features_of("armv7l", "Features\t: half thumb neon\n", vector, 32) == ("half", "thumb", "neon")
    assert features_of("aarch64", X86_CPUINFO, vector, 32) == ()
