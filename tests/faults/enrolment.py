"""What an enrolment leaves in the state folder of a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewise_agent.identity.certificates import key_pem, make_csr, make_key
from edgewise_agent.identity.identity import FOLDER, Card, save_identity
from edgewise_protocol.enrolment import BrokerAddress

DEVICE = "device-1"


def enrol(state: Path, simulator: Any, tuf_root: bytes, broker_port: int = 1) -> None:
    """Write what an enrolment leaves."""
    authority = simulator.Authority()
    (state / FOLDER).mkdir(parents=True)
    key = make_key()
    card = Card(
        device_id=DEVICE,
        channel=simulator.CHANNEL,
        server_url="http://127.0.0.1:1",
        broker=BrokerAddress(host="127.0.0.1", port=broker_port),
        simulated_board=simulator.BOARD,
    )
    save_identity(
        state,
        card,
        key=key_pem(key),
        certificate=authority.issue(make_csr(key), DEVICE),
        fleet_ca=authority.root_pem,
        tuf_root=tuf_root.decode(),
    )
