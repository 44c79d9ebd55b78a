"""Where a model file comes from, as an in-toto statement (Statement v1), without any time.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

import msgspec

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:edgewise:provenance:conversion:1"
PROVENANCE_FILE: Final = "provenance.json"


def converter_version() -> str:
    """Name and version of this converter."""
    return f"edgewise-converter {version('edgewise-converter')}"


def statement(subjects: Mapping[str, bytes], predicate: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a statement about files.

    Args:
        subjects: file name to bytes.
        predicate: what is said of them; must hold no time and no measured latency.
    """
    return (
        msgspec.json.format(
            msgspec.json.encode(
                {
                    "_type": STATEMENT_TYPE,
                    "subject": [
                        {"name": name, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}
                        for name, data in sorted(subjects.items())
                    ],
                    "predicateType": PREDICATE_TYPE,
                    "predicate": predicate,
                },
                order="sorted",
            ),
            indent=1,
        )
        + b"\n"
    )
