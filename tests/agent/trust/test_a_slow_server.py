"""Danger: a file server that drips keeps the client for ever: in the head too, and between the parts of a body."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from edgewise_agent.trust.http_fetcher import HttpFetcher
from tuf.api.exceptions import DownloadError, SlowRetrievalError

WHOLE_S = 0.6
HEADS = {
    "status line": b"",
    "header": b"HTTP/1.1 200 OK\r\nX: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "size of a part": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Sends a beginning, and then a byte every 50 ms until the client is gone."""
    begin: bytes = request.param
    stop = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65_536)
            try:
                connection.sendall(begin)
                while not stop.wait(0.05):
                    connection.sendall(b"0")
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/root.json"
    stop.set()
    thread.join(5)
    listening.close()


@pytest.mark.parametrize("server", HEADS.values(), ids=HEADS.keys(), indirect=True)
def test_whatever_drips_is_given_up_in_time(server: str) -> None:
    began = time.monotonic()
    with pytest.raises(SlowRetrievalError):
        for _ in HttpFetcher(silence_s=5.0, whole_s=WHOLE_S).fetch(server):
            pass
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize(
    "server", [b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\nContent-Length: 0\r\n\r\n"], indirect=True
)
def test_a_redirect_leads_to_http_only(server: str, monkeypatch: Any) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("FTP was tried")

    monkeypatch.setattr("urllib.request.FTPHandler.ftp_open", never)
    with pytest.raises(DownloadError, match="302"):
        list(HttpFetcher(whole_s=5.0).fetch(server))
