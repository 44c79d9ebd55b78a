"""Danger: who was revoked keeps a second door open: a connection whose certificate the broker checked before the
revocation, and on which the device says who it is only after its first connection was ended."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from edgewise_server.broker.publication import SPARE_S
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import RevokedCertificate
from edgewise_server.services import devices

CONNECT = bytes.fromhex("100e00044d51545405020e1000000178")
"""MQTT 5.0, clean start, keepalive 3,600 s, client id `x`: the broker takes that of the certificate."""


def revoke(secured, name):
    with secured.context.database.session() as session:
        devices.revoke(session, name)
    secured.context.refresh_crl(force=True)


def spare(secured, tls):
    """A connection on which nothing is said yet."""
    plain = socket.create_connection(("127.0.0.1", secured.port), 5)
    return tls.wrap_socket(plain, server_hostname="127.0.0.1")


def ended(connection) -> bool:
    connection.settimeout(0.05)
    try:
        # DISCONNECT (0xe0) is the broker's last word where it takes a session over
        return connection.recv(64)[:1] in (b"", b"\xe0")
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_connection_that_was_opened_before_the_revocation_is_ended_too(secured):
    tls = secured.device("cam-1")
    with spare(secured, tls) as connection:
        revoke(secured, "cam-1")
        connection.sendall(CONNECT)
        answer = connection.recv(64)
        assert (answer[0], answer[3]) == (0x20, 0x00)  # accepted: the broker looks at no revocation list here
        secured.context.refresh_broker()
        secured.wait_for(lambda: ended(connection))


def test_once_no_such_connection_can_be_left_the_revocation_is_finished(secured):
    """The server must not speak in the names of all who were ever revoked, for ever."""
    secured.device("cam-1")
    revoke(secured, "cam-1")
    listed = (secured.files / "crl.pem").read_bytes()
    secured.context.refresh_broker()
    assert not (secured.files / "crl.settled.pem").exists()
    before = (secured.files / "crl.pem").stat().st_mtime - SPARE_S - 1
    os.utime(secured.files / "crl.pem", (before, before))
    secured.context.refresh_broker()
    assert (secured.files / "crl.settled.pem").read_bytes() == listed


def test_a_device_whose_certificate_was_renewed_stays_connected(secured):
    """Its old certificate is in the list too; to end its connection again and again would look like a clone."""
    tls = secured.device("cam-1")
    device = secured.phone(tls)
    with secured.context.database.session() as session:
        session.add(RevokedCertificate(serial="abc", device_id="cam-1", not_after=utc_now() + timedelta(days=9)))
    secured.context.refresh_crl(force=True)
    secured.wait_for(lambda: device.ended)
    again = secured.phone(tls)
    secured.context.refresh_broker()
    assert again.publish("ew/1/dev/cam-1/status") and not again.ended
