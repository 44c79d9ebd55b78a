"""Danger: a device takes bundles of a profile whose processor or memory it does not have."""

from __future__ import annotations

import pytest
from edgewise_profiles import catalogue
from edgewise_profiles.errors import NoMatchError
from edgewise_profiles.matching import hardware_misfits, match, misfits
from edgewise_protocol.facts import DeviceFacts
from hypothesis import given
from hypothesis import strategies as st

VNNI = catalogue.load("x86-64-vnni").cpu.features
V2 = catalogue.load("x86-64").cpu.features
PI5 = catalogue.load("raspberry-pi-5").cpu.features
PI4 = catalogue.load("raspberry-pi-4-64").cpu.features
PI32 = (*catalogue.load("raspberry-pi-32").cpu.features, "evtstrm")


def device(machine: str = "x86_64", compatible: tuple[str, ...] = (), features: tuple[str, ...] = (), **more: object):
    return DeviceFacts(machine=machine, compatible=compatible, cpu_features=features, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (device(features=V2), "x86-64"),
        (device(features=(*VNNI, "avx512_vnni")), "x86-64-vnni"),
        (device(features=(*VNNI, "avx_vnni")), "x86-64-vnni"),
        (device(features=VNNI), "x86-64"),
        (device("aarch64", ("raspberrypi,5-model-b", "brcm,bcm2712"), PI5), "raspberry-pi-5"),
        (device("aarch64", ("raspberrypi,4-model-b", "brcm,bcm2711"), PI4, memory_mib=906), "raspberry-pi-4-64"),
        (device("aarch64", ("raspberrypi,model-zero-2-w",), PI4, memory_mib=416), "raspberry-pi-zero-2-w"),
        (device("armv7l", ("raspberrypi,4-model-b", "brcm,bcm2711"), PI32, memory_mib=906), "raspberry-pi-32"),
        (device("armv7l", ("raspberrypi,2-model-b", "brcm,bcm2836"), PI32, memory_mib=920), "raspberry-pi-32"),
        (device(compatible=("raspberry-pi-5",), simulated=True), "raspberry-pi-5"),
        (device(compatible=("x86-64",), features=(*VNNI, "avx_vnni")), "x86-64"),
    ],
)
def test_the_best_profile_is_found(facts: DeviceFacts, expected: str) -> None:
    assert match(facts).id == expected


def test_a_board_that_is_not_what_it_says_is_refused_with_the_reason() -> None:
    with pytest.raises(NoMatchError, match="asimddp"):
        match(device("aarch64", ("raspberrypi,5-model-b",), PI4))
    with pytest.raises(NoMatchError, match="160 MiB of memory are needed, 100"):
        match(device("aarch64", ("raspberrypi,model-zero-2-w",), PI4, memory_mib=100))
    with pytest.raises(NoMatchError, match="none of avx512_vnni, avx_vnni"):
        match(device(features=VNNI), [catalogue.load("x86-64-vnni")])


def test_a_simulated_board_is_only_the_one_that_it_names() -> None:
    facts = device(compatible=("raspberry-pi-zero-2-w",), features=(*VNNI, "avx_vnni"), simulated=True)
    assert [p.id for p in catalogue.load_all() if not misfits(p, facts)] == ["raspberry-pi-zero-2-w"]


@given(
    machine=st.sampled_from(["x86_64", "aarch64", "riscv64"]),
    features=st.sets(st.sampled_from(sorted({*VNNI, *PI5, "avx_vnni", "avx512_vnni"}))).map(tuple),
    compatible=st.lists(
        st.sampled_from([c for p in catalogue.load_all() for c in p.all_compatible]), max_size=3, unique=True
    ).map(tuple),
    memory=st.integers(0, 4096),
)
def test_whatever_is_matched_has_the_hardware_and_does_not_depend_on_the_order_of_the_catalogue(
    machine: str, features: tuple[str, ...], compatible: tuple[str, ...], memory: int
) -> None:
    facts = device(machine, compatible, features, memory_mib=memory)
    try:
        found = match(facts)
    except NoMatchError:
        assert all(misfits(p, facts) for p in catalogue.load_all())
        return
    assert hardware_misfits(found, machine, features) == ()
    assert memory == 0 or memory >= found.budget.memory_mib
    assert match(facts, tuple(reversed(catalogue.load_all()))) == found
