"""The attestation of a bundle: the in-toto statement that it carries, in DSSE, signed by who signs the bundle.

A signature inside the bundle would change its digest; so the statement stands in the bundle
and the envelope beside it. Its subject is the model file, which the manifest names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SecuresystemslibError
from securesystemslib.signer import Key, Signer

from edgewise_cli.errors import RefusedError, TrustError
from edgewise_cli.signing.bundles import BundleFile

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"


def check_statement(bundle: BundleFile) -> None:
    """Check that the bundle's provenance is an in-toto statement about its model file.

    Raises:
        RefusedError: it is not: nobody may sign it.
    """
    try:
        inner = json.loads(bundle.provenance)
        subjects = {s["digest"]["sha256"] for s in inner["subject"]}
        is_statement = inner["_type"] == STATEMENT and isinstance(inner["predicate"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{bundle.source.name}: its provenance is not an in-toto statement: {error}") from error
    if not is_statement:
        raise RefusedError(f"{bundle.source.name}: its provenance is not an in-toto Statement v1")
    main = bundle.manifest.model_file
    if not {entry.sha256 for entry in bundle.manifest.files if entry.name == main} & subjects:
        raise RefusedError(f"{bundle.source.name}: its provenance does not speak of {main}")


def attest(bundle: BundleFile, signers: Sequence[Signer]) -> dict[str, Any]:
    """The DSSE envelope of a bundle's provenance."""
    check_statement(bundle)
    return _sign(Envelope(bundle.provenance, PAYLOAD_TYPE, {}), signers)


def cosign(document: Mapping[str, Any], signers: Sequence[Signer]) -> dict[str, Any]:
    """Add signatures to an envelope."""
    return _sign(parse(document), signers)


def parse(document: Mapping[str, Any]) -> Envelope:
    """Read an envelope without trusting it."""
    try:
        # `from_dict` changes the signatures that it is given.
        return Envelope.from_dict(json.loads(json.dumps(dict(document))))
    except (KeyError, TypeError, ValueError, SecuresystemslibError) as error:
        raise TrustError(f"this is not a DSSE envelope: {error}") from error


def verify(document: Mapping[str, Any], keys: Sequence[Key], threshold: int) -> bytes:
    """Verify an envelope and return its payload.

    Raises:
        TrustError: too few signatures, or another kind of payload.
    """
    envelope = parse(document)
    try:
        envelope.verify(list(keys), threshold)
    except (SecuresystemslibError, ValueError) as error:
        raise TrustError(f"the attestation does not verify: {error}") from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise TrustError("the attestation is not an in-toto statement")
    return envelope.payload


def _sign(envelope: Envelope, signers: Sequence[Signer]) -> dict[str, Any]:
    try:
        for signer in signers:
            envelope.sign(signer)
    except (SecuresystemslibError, ValueError, OSError) as error:
        raise TrustError(f"an attestation cannot be signed: {error}") from error
    found: dict[str, Any] = envelope.to_dict()
    return found
