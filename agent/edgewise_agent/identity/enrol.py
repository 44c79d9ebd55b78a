"""Enrolment: a key made here, a certificate from the fleet, and nothing trusted but the enrolment file."""

from __future__ import annotations

import logging
import ssl
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from edgewise_protocol.enrolment import EnrolmentFile, EnrolRequest, EnrolResponse, decode_enrolment
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.facts import DeviceFacts
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root
from tuf.api.serialization import DeserializationError

from edgewise_agent.durable import write_atomic
from edgewise_agent.errors import EnrolError, EnrolmentUsedError, StorageError
from edgewise_agent.identity.certificates import check_certificate, key_pem, load_key, make_csr, make_key
from edgewise_agent.identity.identity import CARD_FILE, FOLDER, KEY_FILE, Card, save_identity

log = logging.getLogger(__name__)

PATH: Final = "/api/v1/enrol"
_MAX_FILE: Final = 2 << 20
_MAX_ANSWER: Final = 256 * 1024
_TIMEOUT_S: Final = 30.0
_SPENT: Final = frozenset({401, 403, 404, 409, 410})
"""Statuses by which a server says that the token is no good any more."""


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
    url = found.server_url.rstrip("/") + PATH
    if not url.startswith("https://"):
        log.warning("the enrolment is not protected by TLS: use it on a network that you trust", extra={"url": url})
    try:
        context = ssl.create_default_context(cadata=found.fleet_ca)
        asked = urllib.request.Request(  # noqa: S310 - the enrolment file's pattern admits http and https only
            url,
            data=msgspec.json.encode(request),
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            method="POST",
        )
        handlers: list[Any] = [urllib.request.HTTPSHandler(context=context), _NoRedirect()]
        opener = urllib.request.build_opener(*handlers)
        with opener.open(asked, timeout=_TIMEOUT_S) as response:
            return msgspec.json.decode(response.read(_MAX_ANSWER), type=EnrolResponse)
    except urllib.error.HTTPError as error:
        kind = EnrolmentUsedError if error.code in _SPENT else EnrolError
        raise kind(f"the server refuses the enrolment ({error.code}): {_detail(error)}") from error
    except (OSError, ValueError) as error:
        raise EnrolError(f"the server at {found.server_url} cannot be asked: {error}") from error
    except msgspec.MsgspecError as error:
        raise EnrolError(f"the server's answer is not an enrolment: {error}") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token goes to the server that the file names, and to no other."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


def _detail(error: urllib.error.HTTPError) -> str:
    """The `detail` of a problem document (RFC 9457), or the reason phrase."""
    try:
        problem = msgspec.json.decode(error.read(_MAX_ANSWER), type=dict[str, Any])
        return str(problem.get("detail") or problem.get("title") or error.reason)[:500]
    except (msgspec.MsgspecError, OSError):
        return str(error.reason)[:200]
