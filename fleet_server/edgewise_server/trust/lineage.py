"""Provenance and attestations: who vouches for where a bundle comes from.

A bundle holds an in-toto Statement (v1) whose subject is its model file; a DSSE envelope
over exactly those bytes, by a key of the role that signs the target, attests it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import Manifest
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SecureSystemsError
from securesystemslib.exceptions import UnverifiedSignatureError
from tuf.api.metadata import Key

from edgewise_server.errors import AttestationError, LineageError

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
MAX_PROVENANCE_BYTES: Final = 256 * 1024
MAX_SIGNATURES: Final = 16


def read_provenance(bundle: BundleReader) -> bytes:
    """The provenance file of an inference bundle.

    Raises:
        LineageError: there is none, or it is too long or damaged.
    """
    manifest = bundle.manifest
    if not manifest.provenance_file:
        raise LineageError(f"the bundle of {manifest.model} {manifest.version} holds no provenance")
    sizes = {entry.name: entry.size for entry in manifest.files}
    if sizes[manifest.provenance_file] > MAX_PROVENANCE_BYTES:
        raise LineageError(f"the provenance has more than {MAX_PROVENANCE_BYTES} bytes")
    try:
        return bundle.read(manifest.provenance_file)
    except ProtocolError as error:
        raise LineageError(f"the provenance cannot be read: {error}") from error


def check_statement(provenance: bytes, manifest: Manifest) -> dict[str, Any]:
    """Check that a provenance is an in-toto statement about the bundle's model file, or its training step; return it.

    Raises:
        LineageError: it is not.
    """
    try:
        statement = json.loads(provenance)
    except (ValueError, RecursionError) as error:
        raise LineageError(f"the provenance is not JSON: {error}") from error
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE:
        raise LineageError(f"the provenance is not a statement of the type {STATEMENT_TYPE}")
    main = manifest.training.step_file if manifest.training else manifest.model_file
    model = next((entry.sha256 for entry in manifest.files if entry.name == main), None)
    subjects = statement.get("subject")
    digests = [
        s["digest"].get("sha256")
        for s in (subjects if isinstance(subjects, list) else [])
        if isinstance(s, dict) and isinstance(s.get("digest"), dict)
    ]
    if model is None or model not in digests:
        raise LineageError(f"the provenance's subject is not the bundle's {main or 'model file'}")
    if not isinstance(statement.get("predicate"), dict):
        raise LineageError("the provenance has no predicate")
    return statement


def verify_envelope(
    document: Mapping[str, Any], provenance: bytes, keys: Mapping[str, Mapping[str, Key]]
) -> dict[str, list[str]]:
    """Verify a DSSE envelope over a bundle's provenance.

    Args:
        document: the envelope as JSON.
        provenance: the bundle's provenance file; the payload must equal it.
        keys: trusted keys by role and key id.

    Returns:
        Key ids that signed, by role; never empty.

    Raises:
        AttestationError: the envelope is malformed, about something else, or no trusted key signed it.
    """
    try:
        signatures = [dict(s) for s in document["signatures"]]
        if not 0 < len(signatures) <= MAX_SIGNATURES:
            raise AttestationError(f"an envelope carries 1 to {MAX_SIGNATURES} signatures")
        envelope = Envelope.from_dict({**document, "signatures": signatures})
    except (SecureSystemsError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise AttestationError(f"this is not a DSSE envelope: {error}") from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise AttestationError(f"the envelope's payload must be of the type {PAYLOAD_TYPE}")
    if envelope.payload != provenance:
        raise AttestationError("the envelope's payload is not the bundle's provenance")
    found = {role: _signers(envelope, held) for role, held in keys.items()}
    found = {role: keyids for role, keyids in found.items() if keyids}
    if not found:
        raise AttestationError("no key that may sign targets has signed the envelope")
    return found


def _signers(envelope: Envelope, held: Mapping[str, Key]) -> list[str]:
    signers = []
    for keyid, signature in envelope.signatures.items():
        key = held.get(keyid)
        if key is None:
            continue
        try:
            key.verify_signature(signature, envelope.pae())
        except UnverifiedSignatureError:
            continue
        signers.append(keyid)
    return sorted(signers)
