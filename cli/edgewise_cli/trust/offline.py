"""The last verified metadata, for signing on a machine that reaches no server.

They lie in the key folder, where the ceremony or an earlier refresh put them, and are
verified again from its root.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from edgewise_cli import files
from edgewise_cli.errors import MissingError, TrustError
from edgewise_cli.trust.repository import parse

_MAX_ROOTS = 1024


class OfflineView:
    """The same questions as `Repository` answers, from the disk alone."""

    def __init__(self, folder: Path, root: bytes) -> None:
        self._folder = folder
        self._root = self._newest_root(root)

    def root(self) -> Metadata[Root]:
        """The newest root that the anchor's chain leads to."""
        return self._root

    def targets(self) -> Metadata[Targets]:
        """The top-level targets metadata."""
        found = self._read("targets")
        return self._checked(self._root.signed, "targets", found)

    def role(self, name: str) -> Metadata[Targets]:
        """The metadata of a delegated role."""
        return self._checked(self.targets().signed, name, self._read(name))

    def _read(self, role: str) -> Metadata[Targets]:
        path = self._folder / f"{quote(role, safe='')}.json"
        if not path.exists():
            raise MissingError(f"{path} is missing: run `edgewise trust fetch` where the server can be reached")
        return parse(files.read(path), role)

    @staticmethod
    def _checked(delegator: Root | Targets, role: str, found: Metadata[Targets]) -> Metadata[Targets]:
        try:
            delegator.verify_delegate(role, found.signed_bytes, found.signatures)
        except (RepositoryError, ValueError) as error:
            raise TrustError(f"the local metadata of {role} do not verify: {error}") from error
        return found

    def _newest_root(self, anchor: bytes) -> Metadata[Root]:
        try:
            newest: Metadata[Root] = Metadata.from_bytes(anchor)
            newest.verify_delegate("root", newest)
            for _ in range(_MAX_ROOTS):
                path = self._folder / "root_history" / f"{newest.signed.version + 1}.root.json"
                if not path.exists():
                    break
                following: Metadata[Root] = Metadata.from_bytes(files.read(path))
                newest.verify_delegate("root", following)
                following.verify_delegate("root", following)
                newest = following
        except (RepositoryError, DeserializationError, ValueError) as error:
            raise TrustError(f"the local root does not verify: {error}") from error
        return newest
