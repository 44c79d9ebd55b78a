"""Danger: a form that the profile does not allow, one that the origin cannot become, or one that is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.search.candidates import Origin, candidates, contained, describe, keeping, layered
from edgewise_converter.search.chains import CHAINS
from edgewise_profiles import catalogue
from edgewise_profiles.schema import FORMAT_OF, SUPPORTED

ORIGINS = [
    Origin("torch"),
    Origin("onnx"),
    Origin("tflite"),
    Origin("onnx", "int8"),
    Origin("tflite", "int8"),
]
EVERY = [(name, origin) for name in catalogue.names() for origin in ORIGINS]


@pytest.mark.parametrize(("name", "origin"), EVERY, ids=str)
def test_candidates_are_targets_of_the_profile_and_made_of_passes_that_fit_together(name: str, origin: Any) -> None:
    profile = catalogue.load(name)
    found = candidates(profile, origin)
    allowed = {(t.engine, t.precision) for t in profile.targets}
    assert len({c.name for c in found}) == len(found)
    for candidate in found:
        assert (candidate.engine, candidate.precision) in allowed
        format_ = {"torch": None, "onnx": "onnx", "tflite": "tflite"}[origin.family]
        for step in candidate.steps:
            assert PASSES[step.name].reads == format_, candidate.name
            format_ = PASSES[step.name].makes
        assert format_ == candidate.format == FORMAT_OF[candidate.engine]


@pytest.mark.parametrize("name", catalogue.names())
def test_every_target_of_a_profile_can_be_reached_from_torch(name: str) -> None:
    profile = catalogue.load(name)
    reached = {(c.engine, c.precision) for c in candidates(profile, Origin("torch"))}
    assert reached == {(t.engine, t.precision) for t in profile.targets}


def test_every_supported_form_has_a_chain() -> None:
    covered = {(engine, chain.precision) for chain in CHAINS for engine in chain.engines}
    assert SUPPORTED - covered == set()


def test_finished_files_stay_in_their_family() -> None:
    profile = catalogue.load("x86-64")
    assert {c.format for c in candidates(profile, Origin("tflite"))} == {"tflite"}
    assert {c.format for c in candidates(profile, Origin("onnx"))} == {"onnx"}
    assert candidates(catalogue.load("raspberry-pi-zero-2-w"), Origin("onnx")) == ()


def test_only_a_file_that_is_too_new_is_brought_down() -> None:
    profile = catalogue.load("x86-64")

    def openings(too_new: bool) -> set[str]:
        found = candidates(profile, Origin("onnx", too_new=too_new))
        return {c.steps[0].name if c.steps else "as it is" for c in found}

    assert "onnx_opset" not in openings(False)
    assert openings(True) == {"onnx_opset"}


def test_weights_keep_to_seven_bits_where_the_processor_lacks_vnni() -> None:
    for name, reduce_range in (("x86-64", True), ("x86-64-vnni", False)):
        steps = [s for c in candidates(catalogue.load(name), Origin("torch")) for s in c.steps if s.name == "onnx_int8"]
        assert steps and all(s.config.reduce_range is reduce_range for s in steps)


def test_layers_are_kept_by_the_last_pass_that_can_and_named() -> None:
    full = next(c for c in candidates(catalogue.load("x86-64"), Origin("onnx")) if c.precision == "int8")
    kept = keeping(full, ("a", "b"))
    place = layered(full)
    assert place is not None
    assert kept.steps[place].config.keep_float == ("a", "b")
    assert kept.steps[:place] == full.steps[:place]
    assert kept.name == f"{full.name}, 2 layers in float"
    assert "keep_float=a+b" in describe(kept.steps[place])
    plain = next(c for c in candidates(catalogue.load("x86-64"), Origin("onnx")) if c.precision == "float32")
    with pytest.raises(ValueError, match="no pass"):
        keeping(plain, ("a",))


def test_the_container_follows_an_onnx_form_in_integers_and_no_other() -> None:
    found = candidates(catalogue.load("x86-64"), Origin("torch"))
    for candidate in found:
        inside = contained(candidate)
        assert (inside is None) == (candidate.format != "onnx" or candidate.precision not in ("int8", "int8-dynamic"))
        if inside is not None:
            assert inside.format == "ort" and inside.steps[-1].name == "onnx_ort"
            assert inside.is_float == candidate.is_float
