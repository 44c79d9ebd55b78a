"""Danger: a server in other hands fills the memory of the machine that holds the keys."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import httpx
import pytest
from edgewise_cli.client import Client
from edgewise_cli.config import Connection
from edgewise_cli.errors import MissingError, NotEdgewiseError, UnreachableError, UsageError

MIB = 1 << 20


class Endless(httpx.SyncByteStream):
    """A body that never ends; counts what was taken of it."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.taken += MIB
            yield bytes(MIB)


def client(answer: httpx.Response) -> Client:
    return Client(Connection("http://server", "ew_t"), transport=httpx.MockTransport(lambda _: answer))


def test_no_more_of_an_answer_is_held_than_was_asked_for() -> None:
    endless = Endless()
    with pytest.raises(UnreachableError, match="more than"):
        client(httpx.Response(200, stream=endless)).get_bytes("/blobs/x", limit=4 * MIB)
    assert endless.taken <= 6 * MIB


def test_a_compressed_answer_is_measured_by_what_it_becomes() -> None:
    bomb = gzip.compress(bytes(8 * MIB))
    with pytest.raises(UnreachableError, match="more than"):
        client(httpx.Response(200, content=bomb, headers={"Content-Encoding": "gzip"})).get_bytes("/x", limit=MIB)
    small = gzip.compress(b'{"a": 1}')
    assert client(httpx.Response(200, content=small, headers={"Content-Encoding": "gzip"})).get("/x") == {"a": 1}


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404, html="<h1>It works!</h1>"),
        httpx.Response(200, html="<h1>It works!</h1>"),
        httpx.Response(404, json={"error": "no such page"}),
        httpx.Response(404, json={"code": "not-found", "detail": "Not Found"}),
        httpx.Response(502, text="Bad Gateway"),
    ],
)
def test_what_is_no_edgewise_server_is_called_that_and_what_to_do_is_said(answer: httpx.Response) -> None:
    with pytest.raises(NotEdgewiseError, match="without a path") as refused:
        client(answer).get("/status")
    assert refused.value.exit == 3


def test_what_an_edgewise_server_lacks_is_missing() -> None:
    answer = httpx.Response(404, json={"code": "not-found", "detail": "there is no device 'x'"})
    with pytest.raises(MissingError, match="no device"):
        client(answer).get("/devices/x")


def test_a_url_that_names_the_api_is_refused_with_the_mend() -> None:
    with pytest.raises(UsageError, match="without /api/v1"):
        Client(Connection("http://server/api/v1/", "ew_t"))
