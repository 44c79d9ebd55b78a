"""Danger: a name that climbs out of its topic, matches a wildcard or lands in another device's place."""

from __future__ import annotations

import pytest
from edgewise_protocol import topics
from edgewise_protocol.errors import TopicError
from edgewise_protocol.names import check_name
from hypothesis import given
from hypothesis import strategies as st

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True).filter(str.isascii)


@given(names, names)
def test_a_device_topic_parses_back(device: str, leaf: str) -> None:
    parsed = topics.parse_device(topics.device(device, leaf))
    assert (parsed.device_id, parsed.leaf, parsed.chunk) == (device, leaf, None)


@given(names, names, st.integers(0, 999_999_999))
def test_an_update_topic_parses_back(device: str, round_id: str, chunk: int) -> None:
    assert topics.parse_device(topics.update(device, round_id, chunk)) == (device, "update", round_id, chunk)


@pytest.mark.parametrize("bad", ["", "+", "#", "a/b", "../x", "a b", "x\n", "é", "-a", ".a", "a" * 65, "a\0"])
def test_a_bad_name_is_refused(bad: str) -> None:
    with pytest.raises(TopicError, match="not valid"):
        check_name(bad)
    with pytest.raises(TopicError):
        topics.device(bad, "status")


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for topic in (text, f"ew/1/dev/{text}", f"ew/1/dev/d/update/r/{text}"):
        try:
            parsed = topics.parse_device(topic)
        except TopicError:
            continue
        assert check_name(parsed.device_id)


@pytest.mark.parametrize("bad", ["", "a/b", "+", "x" * 129])
def test_a_bad_metadata_file_is_refused(bad: str) -> None:
    with pytest.raises(TopicError):
        topics.metadata(bad)


def test_a_blob_needs_a_whole_digest() -> None:
    with pytest.raises(TopicError):
        topics.blob("ab", 0)
    with pytest.raises(TopicError):
        topics.blob("a" * 64, -1)
