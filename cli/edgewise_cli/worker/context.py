"""What every job of a worker needs: the server, its keys, the verified repository, its files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise_cli.client import Client
from edgewise_cli.errors import TrustError
from edgewise_cli.keys.folder import KeyFolder
from edgewise_cli.trust.repository import Repository


@dataclass
class WorkerContext:
    """One worker process."""

    client: Client
    keys: KeyFolder
    repository: Repository
    config: Path
    """The training configuration whose model this worker promotes."""
    run: Path
    """The run that federations start from; also the training bundle's."""
    out: Path
    """Where runs and bundles of promotions are kept."""
    say: Callable[[str], None]
    stage: Callable[[str], None]
    """Called with what a job does now."""

    def fetch(self, sha256: str, limit: int) -> bytes:
        """A blob whose digest is checked.

        Raises:
            TrustError: the server's bytes have another digest.
        """
        data = self.client.get_bytes(f"/blobs/{sha256}", limit=limit)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise TrustError(f"the server's blob {sha256[:12]} has another digest")
        return data


Job = dict[str, Any]
Result = dict[str, Any]
