"""The server's TUF repository, verified by python-tuf from the operator's own root.

The server's word counts for nothing here: what is signed on top of, and what is published
into, is what verifies from the `root.json` that this operator's ceremony made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote, unquote

from edgewise_protocol.bounds import MAX_METADATA_BYTES, MAX_ROOT_BYTES, MAX_TIMESTAMP_BYTES
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.metadata import parse_targets
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from edgewise_cli import files
from edgewise_cli.client import Client, segment
from edgewise_cli.errors import CliError, FilesError, MissingError, TrustError, UnreachableError

FOLDER: Final = "trusted"
_BASE: Final = "metadata/"
_BEFORE_ALL: Final = datetime.min.replace(tzinfo=UTC)

T = TypeVar("T")


class _RestFetcher(FetcherInterface):
    """python-tuf's fetcher over the server's REST interface."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.failure: CliError | None = None

    def _fetch(self, url: str) -> Iterator[bytes]:
        role_file = url.removeprefix(_BASE)
        try:
            return iter((self._client.get_bytes(metadata_url(role_file), limit=MAX_METADATA_BYTES),))
        except MissingError as error:
            raise DownloadHTTPError(f"the server has no {role_file}", 404) from error
        except CliError as error:
            self.failure = error
            raise DownloadError(str(error)) from error


class _SignersUpdater(Updater):
    """python-tuf's updater for those who sign: it takes expired targets metadata, whose successor alone mends that.

    Root, timestamp and snapshot must be fresh, and they name the version: what has expired is the newest there is, not
    an old one that is held out to us. `_load_targets` is a private method; tests/cli notices when it is not called.
    """

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        now, self._trusted_set.reference_time = self._trusted_set.reference_time, _BEFORE_ALL
        try:
            return super()._load_targets(role, parent_role)
        finally:
            self._trusted_set.reference_time = now


def metadata_url(role_file: str) -> str:
    """REST path of a metadata file; `1.auto%2Flab.json` keeps its quoted slash."""
    return f"/metadata/{segment(role_file)}"


class Repository:
    """A verified view of one server's repository, kept in `folder` between runs.

    Keeping it lets python-tuf notice a server that goes back to older metadata.
    """

    def __init__(self, client: Client, folder: Path, root: bytes) -> None:
        self._folder = folder
        self._fetcher = _RestFetcher(client)
        self._root = root
        self._updater: Updater | None = None

    def refresh(self) -> None:
        """Fetch and verify root, timestamp, snapshot and targets.

        Raises:
            TrustError: something does not verify.
            MissingError: the server has no trust installed yet.
            UnreachableError, NotAuthorisedError: it cannot be asked.
        """
        self._updater = self._verified(self._make)

    def targets(self) -> Metadata[Targets]:
        """The verified top-level targets metadata."""
        self._ready()
        return self._read("targets")

    def root(self) -> Metadata[Root]:
        """The newest verified root."""
        self._ready()
        found: Metadata[Root] = Metadata.from_bytes(files.read(self._folder / "root.json", MAX_ROOT_BYTES))
        return found

    def role(self, name: str) -> Metadata[Targets]:
        """The verified metadata of a delegated role.

        Raises:
            TrustError: no trusted role delegates to it, or it does not verify.
        """
        updater = self._ready()
        delegations = self.targets().signed.delegations
        delegation = (delegations.roles or {}).get(name) if delegations else None
        if delegation is None:
            raise TrustError(f"the targets metadata delegate to no {name!r}")
        # python-tuf loads a delegated role when a path that it covers is looked up.
        if not (paths := delegation.paths):
            raise TrustError(f"the role {name!r} may sign for no path")
        self._verified(lambda: updater.get_targetinfo(paths[0].replace("*", "-")))
        return self._read(name)

    def _make(self) -> Updater:
        self._folder.mkdir(parents=True, exist_ok=True)
        updater = _SignersUpdater(
            metadata_dir=str(self._folder),
            metadata_base_url=_BASE,
            fetcher=self._fetcher,
            config=UpdaterConfig(
                root_max_length=MAX_ROOT_BYTES,
                timestamp_max_length=MAX_TIMESTAMP_BYTES,
                snapshot_max_length=MAX_METADATA_BYTES,
                targets_max_length=MAX_METADATA_BYTES,
            ),
            bootstrap=self._root,
        )
        updater.refresh()
        return updater

    def _ready(self) -> Updater:
        if self._updater is None:
            self.refresh()
        if self._updater is None:
            raise TrustError("the repository could not be verified")
        return self._updater

    def _read(self, role: str) -> Metadata[Targets]:
        return parse(files.read(self._folder / f"{quote(role, safe='')}.json", MAX_METADATA_BYTES), role)

    def _verified(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except DownloadHTTPError as error:
            raise MissingError(f"{error}: install the trust first (`edgewise trust install`)") from error
        except DownloadError as error:
            raise self._fetcher.failure or UnreachableError(str(error)) from error
        except RepositoryError as error:
            raise TrustError(f"what the server serves does not verify from your root: {error}") from error
        except OSError as error:
            raise FilesError(f"{self._folder} cannot be used: {error.strerror or error}") from error


def parse(data: bytes, role: str) -> Metadata[Targets]:
    """Read a role's metadata.

    Raises:
        TrustError: they are not bounded Targets metadata.
    """
    try:
        return parse_targets(data, MAX_METADATA_BYTES, f"metadata of {unquote(role)}")
    except ProtocolError as error:
        raise TrustError(str(error)) from error
