"""Danger: a proxy that lies: an answer that never ends or never comes, or credentials in the wrong hands."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from edgewise_agent.errors import ConfigError, ProxyError
from edgewise_agent.session.proxy import MAX_HEAD, Proxy, check_answer, connect_through, parse_proxy, request


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://proxy", Proxy("proxy", 3128)),
        ("http://proxy:8080/", Proxy("proxy", 8080)),
        ("http://u%40x:p%3Aw@10.0.0.1:80", Proxy("10.0.0.1", 80, "u@x:p:w")),
        ("http://[::1]:81", Proxy("::1", 81)),
        ("", None),
    ],
)
def test_a_proxys_url(url, proxy):
    assert parse_proxy(url) == proxy


@pytest.mark.parametrize(
    "url",
    ["proxy:80", "https://proxy", "socks5://proxy", "http://", "http://p/path", "http://p:99999", "http://u:%0d@p"],
)
def test_what_is_no_proxys_url(url):
    with pytest.raises(ConfigError, match="proxy_url"):
        parse_proxy(url)


def test_the_request_names_the_broker_and_carries_the_credentials_to_the_proxy_alone():
    text = request(Proxy("p", 1, "Aladdin:open sesame"), "::1", 443).decode()
    assert text.startswith("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n") and text.endswith("\r\n\r\n")
    assert "Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n" in text, "RFC 7617 section 2"


@pytest.mark.parametrize(
    ("head", "cause"),
    [
        (b"HTTP/1.1 407 Who\r\n\r\n", "user and a password"),
        (b"HTTP/1.0 403 No\r\n\r\n", "refuses"),
        (b"HTTP/1.1 302 There\r\n\r\n", "refuses"),
        (b"SSH-2.0-x\r\n\r\n", "as an HTTP proxy"),
        (b"HTTP/1.1 \xff\r\n\r\n", "as an HTTP proxy"),
    ],
)
def test_each_refusal_has_its_cause(head, cause):
    with pytest.raises(ProxyError, match=cause):
        check_answer(head, Proxy("p", 1), "broker", 443)


def serving(act):
    """A proxy that does one thing; its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        made, _ = listening.accept()
        with listening, made:
            act(made)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return listening.getsockname()[1], thread


def test_what_follows_the_answer_belongs_to_the_broker():
    port, thread = serving(lambda made: made.sendall(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nhello") or made.recv(1000))
    made = connect_through(Proxy("127.0.0.1", port), "broker", 443, 5)
    with made:
        assert made.recv(100) == b"hello"
    thread.join(5)


def test_an_endless_answer_and_silence_are_given_up():
    def endless(made):
        try:
            while True:
                made.sendall(b"x" * 1_000)
        except OSError:
            return

    port, thread = serving(endless)
    with pytest.raises(ProxyError, match=str(MAX_HEAD)):
        connect_through(Proxy("127.0.0.1", port), "broker", 443, 5)
    thread.join(5)

    quiet = threading.Event()
    port, thread = serving(lambda _: quiet.wait(10))
    began = time.monotonic()
    with pytest.raises(ProxyError, match="does not answer"):
        connect_through(Proxy("127.0.0.1", port), "broker", 443, 0.3)
    assert time.monotonic() - began < 5
    quiet.set()
    thread.join(5)


def test_a_drop_of_an_answer_at_a_time_does_not_outlast_the_deadline():
    stop = threading.Event()

    def drip(made):
        try:
            while not stop.wait(0.05):
                made.sendall(b"H")
        except OSError:
            return

    port, thread = serving(drip)
    began = time.monotonic()
    with pytest.raises(ProxyError, match="does not answer"):
        connect_through(Proxy("127.0.0.1", port), "broker", 443, 0.5)
    assert time.monotonic() - began < 5
    stop.set()
    thread.join(5)


def test_a_proxy_that_is_not_there_or_hangs_up():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ProxyError, match="cannot be reached"):
        connect_through(Proxy("127.0.0.1", port), "broker", 443, 5)
    port, thread = serving(lambda made: made.recv(1000))
    with pytest.raises(ProxyError, match="closed the connection"):
        connect_through(Proxy("127.0.0.1", port), "broker", 443, 5)
    thread.join(5)
