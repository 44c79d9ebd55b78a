"""Where a model that is no run comes from, in strings that are signed."""

from __future__ import annotations

from typing import Final

from edgewise_converter import provenance
from edgewise_converter.requests import digest_of
from edgewise_converter.sources.reading import Prepared

_SHORT: Final = 12


def lineage_of_file(digest: str, file: str, ready: Prepared, origin: str) -> dict[str, str]:
    """The lineage of a file or a factory's model.

    Args:
        digest: of the model before any pass, SHA-256.
        file: its name, or `module:factory`.
        ready: the samples.
        origin: in the user's words; may be empty.
    """
    labels = {} if ready.y is None else {"y": ready.y}
    found = {
        "run": f"imported-{digest[:_SHORT]}",
        "data": "sample",
        "data_fingerprint": digest_of(labels, ready.calibration.sha256, ready.heldout.sha256),
        "source_sha256": digest,
        "source_file": file[:200],
        "converter": provenance.converter_version(),
    }
    return found | ({"origin": origin[:1000]} if origin else {})
