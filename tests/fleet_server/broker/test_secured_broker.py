"""Danger: the broker's locks: a device that reads or writes another's topics, a revoked one that stays, a certificate
that ends in the night, an intruder with a certificate of another authority, a device that poses as the broker."""

from __future__ import annotations

import ssl
from datetime import timedelta
from uuid import uuid4

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from edgewise_protocol import topics
from edgewise_protocol.bounds import MAX_PACKET_BYTES
from edgewise_server.bridge.connection import SESSION_S
from edgewise_server.broker.mosquitto import OWN_WRITABLE, SERVER_USER
from edgewise_server.broker.publication import BrokerFiles
from edgewise_server.broker.reload import reload_mosquitto
from edgewise_server.context import online_description
from edgewise_server.models.base import utc_now
from edgewise_server.pki.authority import create_authority
from edgewise_server.services import devices, identity

WRITTEN = ("Success", "No matching subscribers")
OWN = [leaf.replace("+", "r-1", 1).replace("+", "0") for leaf in OWN_WRITABLE]


def revoke(secured, name):
    with secured.context.database.session() as session:
        devices.revoke(session, name)
    secured.context.refresh_crl(force=True)


def retained(phone, *filters):
    """What a subscription brings; the broker answers a later one after it has sent what is retained."""
    before = len(phone.messages)
    phone.subscribe(*filters)
    phone.subscribe(topics.SENTINEL)
    return phone.messages[before:]


def test_a_device_writes_its_own_topics_and_no_others(secured):
    server, device = secured.server_phone(), secured.phone(secured.device("cam-1"))
    secured.device("cam-2")
    server.subscribe("ew/1/#")
    for leaf in OWN:
        assert device.publish(f"ew/1/dev/cam-1/{leaf}") == "Success"
    allowed = [f"ew/1/dev/cam-1/{leaf}" for leaf in OWN]
    forbidden = [
        *(f"ew/1/dev/cam-2/{leaf}" for leaf in OWN),
        "ew/1/dev/cam-1/assignment",
        "ew/1/dev/cam-1/ack",
        "ew/1/dev/cam-1/status/more",
        "ew/1/meta/timestamp.json",
        f"ew/1/blob/{'0' * 64}/0",
        "ew/1/round/r-1",
        topics.BROKER_STATE,
        "$SYS/broker/uptime",
        "elsewhere",
    ]
    for topic in forbidden:
        assert device.publish(topic, retain=True) == "Not authorized", topic
    device.publish(f"ew/1/dev/cam-1/{OWN[0]}", b"last")
    secured.wait_for(lambda: server.messages and server.messages[-1][1] == b"last")
    assert {topic for topic, _ in server.messages} == set(allowed)


def test_a_device_reads_what_is_meant_for_it_and_nothing_of_others(secured):
    server, device = secured.server_phone(), secured.phone(secured.device("cam-1"))
    public = ["ew/1/meta/sentinel", "ew/1/meta/timestamp.json", f"ew/1/blob/{'0' * 64}/0", "ew/1/round/r-1"]
    own = ["ew/1/dev/cam-1/assignment", "ew/1/dev/cam-1/ack"]
    others = [f"ew/1/dev/cam-2/{leaf}" for leaf in ("assignment", "ack", *OWN)]
    for topic in (*public, *own, *others, topics.BROKER_STATE):
        assert server.publish(topic, retain=True) in WRITTEN
    found = retained(device, "#", "ew/1/#", "ew/1/dev/+/assignment", *others, *own, "$SYS/#")
    assert {topic for topic, _ in found} == {*public, *own}
    # What comes later is held against the list too.
    server.publish("ew/1/dev/cam-2/assignment", b"later")
    server.publish("ew/1/dev/cam-1/assignment", b"later")
    secured.wait_for(lambda: device.messages[-1] == ("ew/1/dev/cam-1/assignment", b"later"))
    assert not [m for m in device.messages if "cam-2" in m[0]]


def test_an_intruder_in_a_shared_subscription_swallows_nothing(secured):
    """The server subscribes alone and without a group; a member of any group gets what it may read, and keeps nothing
    from the server."""
    server = secured.server_phone()
    device, other = (secured.phone(secured.device(name)) for name in ("cam-1", "cam-2"))
    server.subscribe("ew/1/dev/+/telemetry")
    device.subscribe("$share/bridge/ew/1/dev/+/telemetry", f"$share/{SERVER_USER}/ew/1/dev/+/telemetry", "$share/x/#")
    for n in range(100):
        assert other.publish("ew/1/dev/cam-2/telemetry", str(n).encode()) == "Success"
    secured.wait_for(lambda: len(server.messages) == 100)
    assert [int(payload) for _, payload in server.messages] == list(range(100))
    assert device.messages == []


def test_a_client_is_who_its_certificate_says_whatever_it_calls_itself(secured):
    """Two clients with one certificate take each other's place; their client ids do not matter."""
    tls = secured.device("cam-1")
    first = secured.phone(tls)
    second = secured.phone(tls)
    assert second.outcome == "Success"
    secured.wait_for(lambda: first.ended)
    assert second.publish("ew/1/dev/cam-1/status") in WRITTEN


def test_a_revoked_device_is_cut_off_at_once_and_stays_out(secured):
    tls, other = secured.device("cam-1"), secured.phone(secured.device("cam-2"))
    server, device = secured.server_phone(), secured.phone(tls, will="ew/1/dev/cam-1/status")
    server.subscribe("ew/1/dev/+/status")
    assert device.publish("ew/1/dev/cam-1/status") == "Success"
    revoke(secured, "cam-1")
    secured.wait_for(lambda: device.ended)
    secured.wait_for(lambda: ("ew/1/dev/cam-1/status", b"gone") in server.messages)

    def cause_is_logged() -> bool:
        # Mosquitto logs nothing where the client is gone before the handshake was judged
        assert secured.phone(tls).outcome != "Success"
        return "certificate verify failed" in secured.log

    secured.wait_for(cause_is_logged)
    assert other.ended == "" and other.publish("ew/1/dev/cam-2/status") == "Success"
    assert server.ended == ""


def test_a_revocation_that_the_broker_missed_is_finished_later(secured):
    """The server died, or the broker was away, between the list and the end of the connection."""
    tls = secured.device("cam-1")
    device = secured.phone(tls)
    with secured.context.database.session() as session:
        devices.revoke(session, "cam-1")
        identity.renew_crl(session, secured.context.authority, now=utc_now(), days=7, force=True)
    assert device.ended == ""
    assert secured.context.refresh_broker() == ["the revocation list"]
    secured.wait_for(lambda: device.ended)
    assert secured.phone(tls).outcome != "Success"
    assert secured.context.refresh_broker() == []


def test_two_revocations_in_one_second_both_hold(secured):
    first, second = secured.device("cam-1"), secured.device("cam-2")
    revoke(secured, "cam-1")
    revoke(secured, "cam-2")
    assert secured.phone(first).outcome != "Success"
    assert secured.phone(second).outcome != "Success"


def test_certificates_are_renewed_and_the_broker_takes_the_new_one_while_all_stay_connected(unstarted):
    secured, context = unstarted, unstarted.context
    files = BrokerFiles(context.settings, context.database, context.authority)
    context.refresh_crl(force=True)
    for name in ("broker.pem", "server.pem"):
        (secured.files / name).unlink()
    assert len(files.look(utc_now() - timedelta(days=61))) == 2
    secured.start()
    device, server = secured.phone(secured.device("cam-1")), secured.server_phone()
    before = secured.shown()
    done = files.look(utc_now())
    assert [line.split(" (")[0] for line in done] == ["the broker's certificate", "the server's certificate"]
    assert all("two thirds" in line for line in done)
    assert files.look(utc_now()) == []
    secured.wait_for(lambda: secured.shown().serial_number != before.serial_number)
    assert device.ended == "" and server.ended == ""
    assert device.publish("ew/1/dev/cam-1/status") in WRITTEN


def test_another_authoritys_certificates_are_refused(secured, tmp_path, kit):
    """One of another fleet; and one of an intermediate that the fleet's root signed, and that is not in use (a stolen
    one, after the ceremony has replaced it): there is no revocation list of it, so nobody of it comes in."""
    stolen = create_authority(tmp_path / "stolen")
    with secured.context.database.session(read_only=True) as session:
        ca = identity.fleet_ca(session)
    context = secured.context
    online = online_description(context.keys, context.authority) | {"intermediate_csr_pem": stolen.csr_pem()}
    other = kit.Ceremony(online)
    _, foreign_pem = other.fleet_ca()
    minted = stolen.issue_client(foreign_pem, name=SERVER_USER, now=utc_now(), days=1)
    assert secured.phone(secured.tls(minted.bundle.decode())).outcome != "Success"

    _, sibling_pem = other.fleet_ca(secured.ceremony.keys.ca_key)
    x509.load_pem_x509_certificate(sibling_pem.encode()).verify_directly_issued_by(
        x509.load_pem_x509_certificate(ca.root_pem.encode())
    )
    minted = stolen.issue_client(sibling_pem, name=SERVER_USER, now=utc_now(), days=1)
    assert secured.phone(secured.tls(minted.bundle.decode())).outcome != "Success"


def test_nobody_comes_in_without_a_certificate_and_no_device_poses_as_the_broker(secured):
    with secured.context.database.session(read_only=True) as session:
        root = identity.fleet_ca(session).root_pem
    bare = ssl.create_default_context(cadata=root)
    assert secured.phone(bare).outcome != "Success"
    server_only = secured.tls((secured.files / "broker.pem").read_text())
    assert secured.phone(server_only).outcome != "Success", "a server's certificate must not serve as a client's"
    leaf = x509.load_pem_x509_certificates((secured.files / "server.pem").read_bytes())[0]
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_packet_that_is_too_large_ends_the_connection_and_is_not_swallowed(secured):
    device = secured.phone(secured.device("cam-1"))
    device.send("ew/1/dev/cam-1/event", b"x" * (MAX_PACKET_BYTES + 1))
    secured.wait_for(lambda: device.ended)


def test_after_the_intermediate_was_replaced_every_open_connection_is_ended(secured):
    """Whoever holds the stolen one may be connected under any device's name. The server died before it was through."""
    devices_tls = {name: secured.device(name) for name in ("cam-1", "cam-2")}
    phones = [secured.phone(tls) for tls in devices_tls.values()]
    with secured.context.database.session() as session:
        ca = identity.fleet_ca(session)
        ca.root_pem, ca.intermediate_pem = secured.ceremony.fleet_ca()
        session.add(ca)
    done = secured.context.refresh_broker()
    assert "the authorities" in done and (secured.files / "evict.next").read_bytes() == b""
    assert not any(phone.ended for phone in phones)
    assert secured.context.refresh_broker(thorough=True) == []
    for phone in phones:
        secured.wait_for(lambda phone=phone: phone.ended)
    assert not (secured.files / "evict.next").exists()
    assert secured.context.refresh_broker(thorough=True) == []


def test_reloads_while_the_server_is_away_do_not_harm_the_broker(secured):
    """Mosquitto 2.0.11 lists an ended session that expires once more at each reload, and later it crashes."""
    for _ in range(5):
        phone = secured.server_phone(session_s=SESSION_S)
        assert phone.subscribe("ew/1/dev/+/event") == ["Granted QoS 1"]
        phone.close()
        for _ in range(3):
            assert reload_mosquitto(secured.files / "mosquitto.pid") == ""
            # It reads its files in its own time: who is let in was let in after that.
            other = secured.phone(secured.device(f"one-{uuid4().hex}"), session_s=0)
            assert other.outcome == "Success", (other.ended, secured.log)
            other.close()
    again = secured.server_phone(session_s=SESSION_S)
    assert again.outcome == "Success", secured.log
