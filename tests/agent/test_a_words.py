"""Guards against an error code that the device shows and nobody explains."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import edgewise_agent
import pytest
from edgewise_agent.doctor.check import fail, render
from edgewise_agent.errors import AgentError
from edgewise_agent.words import WORDS, words_for
from edgewise_protocol.errors import ProtocolError


def classes(base: type[Exception]) -> Iterator[type[Exception]]:
    yield base
    for kind in base.__subclasses__():
        yield from classes(kind)


def test_every_code_of_the_agent_and_the_protocol_has_words() -> None:
    for module in pkgutil.walk_packages(edgewise_agent.__path__, "edgewise_agent."):
        if module.name.endswith(("errors", "downloader", "self_test")):
            importlib.import_module(module.name)
    codes = {kind.code for base in (AgentError, ProtocolError) for kind in classes(base)}  # type: ignore[attr-defined]
    codes = {code for code in codes if isinstance(code, str)}
    assert codes and codes - WORDS.keys() == set()


@pytest.mark.parametrize("code", sorted(WORDS))
def test_words_are_sentences(code: str) -> None:
    words = words_for(code)
    assert words.meaning.endswith(".") and words.meaning[0].isupper()
    assert not words.mend.endswith(".") and len(words.meaning) < 120


def test_an_unknown_code_is_admitted_and_a_failure_says_what_to_do() -> None:
    assert "not known" in words_for("of-the-future").meaning
    shown = render([fail("disk", "no byte is free", code="disk-full")])
    assert "[disk-full]" in shown and "-> free disk space" in shown and shown.endswith("1 wrong, 0 to look at")
