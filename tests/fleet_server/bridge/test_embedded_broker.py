"""Danger: a broker without access control listens where others can reach it, or drops what the contract allows."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from edgewise_protocol.bounds import KIB, MIB
from edgewise_server.broker.embedded import BrokerError, EmbeddedBroker
from edgewise_server.errors import SettingsError


def settings(port: int, host: str = "127.0.0.1") -> Any:
    return SimpleNamespace(broker_host=host, broker_port=port)


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    yield number


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "broker.example", ""])
def test_it_refuses_to_listen_elsewhere(host: str) -> None:
    with pytest.raises(SettingsError, match="loopback"):
        EmbeddedBroker(settings(1883, host))


def test_it_listens_on_loopback_only_and_frees_the_port(port: int) -> None:
    broker = EmbeddedBroker(settings(port))
    with broker:
        assert broker.running
        listening = _listeners(port)
        assert listening == ["0100007F"]
        with pytest.raises(BrokerError, match=str(port)):
            EmbeddedBroker(settings(port)).start()
    assert not broker.running and _listeners(port) == []
    broker.stop()
    broker.start()
    assert broker.running
    broker.stop()


def _listeners(port: int) -> list[str]:
    """Local addresses, as the kernel writes them, that listen on a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]


def test_large_packets_pass(bridged: SimpleNamespace) -> None:
    phone = bridged.phone("d1")
    phone.listen("ew/1/meta/big.json")
    payload = bytes(5 * MIB + 3 * KIB)
    phone.send_raw("ew/1/meta/big.json", payload, retain=True)
    phone.wait(lambda: phone.retained.get("ew/1/meta/big.json") == payload, "the large packet")
