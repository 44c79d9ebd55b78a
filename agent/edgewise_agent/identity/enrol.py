"""Enrolment: a key made here, a certificate from the fleet, and nothing trusted but the enrolment file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edgewise_protocol.enrolment import EnrolmentFile, EnrolRequest, EnrolResponse, decode_enrolment
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.facts import DeviceFacts
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root
from tuf.api.serialization import DeserializationError

from edgewise_agent.durable import write_atomic
from edgewise_agent.errors import (
    EnrolError,
    EnrolmentExpiredError,
    EnrolmentUsedError,
    ServerRefusedError,
    ServerUnreachableError,
    StorageError,
    UnknownBoardError,
)
from edgewise_agent.identity.certificates import check_certificate, key_pem, load_key, make_csr, make_key
from edgewise_agent.identity.exchange import ask
from edgewise_agent.identity.identity import CARD_FILE, FOLDER, KEY_FILE, Card, save_identity

PATH: Final = "/api/v1/enrol"
_MAX_FILE: Final = 2 << 20
_SPENT: Final = frozenset({401, 403, 404, 409, 410})
"""Statuses by which a server says that the token is no good any more."""
_CODES: Final[dict[str, type[EnrolError]]] = {
    "enrolment-expired": EnrolmentExpiredError,
    "unknown-board": UnknownBoardError,
}


def enrol(path: Path, state: Path, facts: DeviceFacts, simulated_board: str) -> Card:
    """Enrol this device with an enrolment file.

    The key stays in the state folder when the exchange fails, so that a second try, which a
    lost answer may need, is of the same device.

    Raises:
        EnrolError, EnrolmentUsedError, IdentityError: why not.
    """
    if (state / FOLDER / CARD_FILE).exists():
        raise EnrolError(f"{state} is enrolled already: use another state folder, or remove this one first")
    found = read_enrolment(path)
    key_path = state / FOLDER / KEY_FILE
    try:
        (state / FOLDER).mkdir(parents=True, exist_ok=True, mode=0o700)
        if key_path.exists():
            key = load_key(key_path.read_bytes())
        else:
            key = make_key()
            write_atomic(key_path, key_pem(key), mode=0o600)
    except OSError as error:
        raise StorageError(f"the state folder cannot be used: {error}") from error
    request = EnrolRequest(token=found.token, csr_pem=make_csr(key), facts=facts)
    answer = _exchange(found, request)
    if answer.channel != found.channel:
        raise EnrolError(f"the server answers with the channel {answer.channel!r}; the file says {found.channel!r}")
    if found.name and answer.device_id != found.name:
        raise EnrolError(f"the server answers with the id {answer.device_id!r}; the file says {found.name!r}")
    check_certificate(answer.certificate_pem, found.fleet_ca, key, answer.device_id, datetime.now(UTC))
    card = Card(
        device_id=answer.device_id,
        channel=answer.channel,
        server_url=found.server_url,
        broker=found.broker,
        simulated_board=simulated_board,
    )
    save_identity(
        state,
        card,
        key=key_pem(key),
        certificate=answer.certificate_pem,
        fleet_ca=found.fleet_ca,
        tuf_root=found.tuf_root,
    )
    return card


def read_enrolment(path: Path) -> EnrolmentFile:
    """Read an enrolment file, and check that its TUF root is one; raises `EnrolError`."""
    try:
        with path.open("rb") as file:
            found = decode_enrolment(file.read(_MAX_FILE))
        root: Metadata[Root] = Metadata.from_bytes(found.tuf_root.encode())
        root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
    except OSError as error:
        raise EnrolError(f"the enrolment file {path} cannot be read: {error.strerror}") from error
    except ProtocolError as error:
        raise EnrolError(str(error)) from error
    except (RepositoryError, DeserializationError, ValueError, AttributeError) as error:
        raise EnrolError(f"the enrolment file's TUF root is not valid: {error}") from error
    return found


def _exchange(found: EnrolmentFile, request: EnrolRequest) -> EnrolResponse:
    try:
        return ask(found.server_url, PATH, found.fleet_ca, request, EnrolResponse)
    except ServerRefusedError as error:
        kind = _CODES.get(error.problem) or (EnrolmentUsedError if error.status in _SPENT else EnrolError)
        raise kind(f"the server refuses the enrolment ({error.status}): {error}") from error
    except ServerUnreachableError as error:
        raise EnrolError(str(error)) from error
