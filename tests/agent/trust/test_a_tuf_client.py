"""The danger: the agent's trust code differs from what TUF's specification asks of every client.

The main cases of the TUF project's conformance suite (which is not on the package index), over
real HTTP, through the client contract that the suite calls: exit status, kept metadata, kept
files and the requests made are all that is looked at.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from edgewise_agent.__main__ import main
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

ROLES = ("root", "timestamp", "snapshot", "targets")


class Repo:
    """A TUF repository in memory, every document of which a test may bend before it is published."""

    def __init__(self) -> None:
        later = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
        self.expires = later
        self.keys: dict[str, list[CryptoSigner]] = {role: [CryptoSigner.generate_ed25519()] for role in ROLES}
        self.root = Root(expires=later, consistent_snapshot=True)
        for role in ROLES:
            self.root.add_key(self.keys[role][0].public_key, role)
        self.timestamp, self.snapshot = Timestamp(expires=later), Snapshot(expires=later)
        self.delegated: dict[str, Targets] = {"targets": Targets(expires=later)}
        self.files: dict[str, bytes] = {}
        self.served: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.with_hashes = False
        self.publish_root()
        self.publish("targets")

    @property
    def targets(self) -> Targets:
        return self.delegated["targets"]

    def sign(self, role: str, signed: Any) -> bytes:
        metadata = Metadata(signed)
        for key in self.keys[role]:
            metadata.sign(key, append=True)
        return metadata.to_bytes(JSONSerializer())

    def publish_root(self) -> None:
        self.served[f"metadata/{self.root.version}.root.json"] = self.sign("root", self.root)

    def next_root(self) -> None:
        self.root.version += 1
        self.publish_root()

    def put(self, name: str, version: int, data: bytes) -> None:
        if self.root.consistent_snapshot:
            self.served[f"metadata/{version}.{name}.json"] = data
        else:
            self.served[f"metadata/{name}.json"] = data

    def describe(self, version: int, data: bytes) -> MetaFile:
        if not self.with_hashes:
            return MetaFile(version)
        return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})

    def publish(self, *roles: str) -> None:
        """Sign the named targets roles as they are, then a new snapshot and timestamp."""
        for role in roles:
            data = self.sign(role, self.delegated[role])
            self.put(quote(role, ""), self.delegated[role].version, data)
            self.snapshot.meta[f"{role}.json"] = self.describe(self.delegated[role].version, data)
        self.publish_snapshot()

    def publish_snapshot(self) -> None:
        data = self.sign("snapshot", self.snapshot)
        self.put("snapshot", self.snapshot.version, data)
        self.timestamp.snapshot_meta = self.describe(self.snapshot.version, data)
        self.publish_timestamp()

    def publish_timestamp(self) -> None:
        self.served["metadata/timestamp.json"] = self.sign("timestamp", self.timestamp)

    def advance(self, *roles: str) -> None:
        for role in roles:
            self.delegated[role].version += 1
        self.snapshot.version += 1
        self.timestamp.version += 1
        self.publish(*roles)

    def add_file(self, path: str, data: bytes, role: str = "targets") -> None:
        target = TargetFile.from_data(path, data, ["sha256"])
        self.delegated[role].targets[path] = target
        folder, sep, name = path.rpartition("/")
        self.served[f"targets/{folder}{sep}{target.hashes['sha256']}.{name}"] = data

    def delegate(self, parent: str, name: str, paths: list[str], terminating: bool = False) -> None:
        parent_targets = self.delegated[parent]
        if parent_targets.delegations is None:
            parent_targets.delegations = Delegations({}, {})
        assert parent_targets.delegations.roles is not None
        parent_targets.delegations.roles[name] = DelegatedRole(name, [], 1, terminating, paths)
        if name not in self.keys:
            self.keys[name] = [CryptoSigner.generate_ed25519()]
        parent_targets.add_key(self.keys[name][0].public_key, name)
        self.delegated.setdefault(name, Targets(expires=self.expires))

    def rotate(self, role: str) -> None:
        for key in self.keys[role]:
            self.root.revoke_key(key.public_key.keyid, role)
        self.keys[role] = [CryptoSigner.generate_ed25519()]
        self.root.add_key(self.keys[role][0].public_key, role)


class Client:
    """The client under test and where it keeps things."""

    def __init__(self, folder: Path, repo: Repo, port: int) -> None:
        self.metadata, self.files = folder / "client-metadata", folder / "client-targets"
        self.files.mkdir()
        self._root = folder / "trusted.json"
        self._root.write_bytes(repo.served["metadata/1.root.json"])
        self._url = f"http://127.0.0.1:{port}"

    def init_arguments(self) -> list[str]:
        return ["tuf", "--metadata-dir", str(self.metadata), "init", str(self._root)]

    def refresh_arguments(self) -> list[str]:
        return ["tuf", "--metadata-dir", str(self.metadata), "--metadata-url", f"{self._url}/metadata", "refresh"]

    def init(self) -> int:
        return main(self.init_arguments())

    def refresh(self) -> int:
        return main(self.refresh_arguments())

    def download(self, name: str) -> int:
        places = ["--metadata-dir", str(self.metadata), "--metadata-url", f"{self._url}/metadata"]
        what = ["--target-name", name, "--target-base-url", f"{self._url}/targets", "--target-dir", str(self.files)]
        return main(["tuf", *places, *what, "download"])

    def version(self, role: str) -> int:
        return int(Metadata.from_file(str(self.metadata / f"{role}.json")).signed.version)

    def versions(self) -> list[int]:
        return [self.version(role) for role in ROLES]

    def kept(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in self.files.rglob("*") if path.is_file())


@pytest.fixture
def repo() -> Repo:
    return Repo()


@pytest.fixture
def port(repo: Repo) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix("/")
            repo.asked.append(path)
            found = repo.served.get(path, repo.served.get(unquote(path)))
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", str(len(found or b"")))
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(tmp_path: Path, repo: Repo, port: int) -> Client:
    made = Client(tmp_path, repo, port)
    assert made.init() == 0
    return made


def test_a_new_client_asks_for_what_the_workflow_names_and_nothing_else(client: Client, repo: Repo) -> None:
    assert repo.asked == []
    assert client.refresh() == 0
    assert repo.asked == [
        "metadata/2.root.json",
        "metadata/timestamp.json",
        "metadata/1.snapshot.json",
        "metadata/1.targets.json",
    ]
    assert client.versions() == [1, 1, 1, 1]
    repo.asked.clear()
    assert client.refresh() == 0
    assert repo.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_the_contract_holds_for_the_installed_command(tmp_path: Path, repo: Repo, port: int) -> None:
    client = Client(tmp_path, repo, port)
    for arguments in (client.init_arguments(), client.refresh_arguments()):
        done = subprocess.run([sys.executable, "-m", "edgewise_agent", *arguments], timeout=60, check=False)
        assert done.returncode == 0
    assert client.versions() == [1, 1, 1, 1]
    repo.served["metadata/timestamp.json"] = b"{}"
    done = subprocess.run(
        [sys.executable, "-m", "edgewise_agent", *client.refresh_arguments()],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_a_client_without_init_or_with_garbage_for_a_root_refuses(tmp_path: Path, repo: Repo, port: int) -> None:
    client = Client(tmp_path, repo, port)
    assert client.refresh() == 1
    (tmp_path / "trusted.json").write_bytes(b'{"signed": {}}')
    client.init()
    assert client.refresh() == 1
    assert repo.asked == []


@pytest.mark.parametrize("role", ROLES)
def test_metadata_that_their_role_did_not_sign_are_refused(client: Client, repo: Repo, role: str) -> None:
    assert client.refresh() == 0
    repo.keys[role] = [CryptoSigner.generate_ed25519()]
    if role == "root":
        repo.next_root()
    repo.advance("targets")
    assert client.refresh() == 1
    assert client.version(role) == 1


@pytest.mark.parametrize("consistent", [True, False])
def test_consistent_snapshots_decide_which_names_are_asked_for(client: Client, repo: Repo, consistent: bool) -> None:
    repo.root.consistent_snapshot = consistent
    repo.next_root()
    repo.publish("targets")
    assert client.refresh() == 0
    prefix = "1." if consistent else ""
    assert repo.asked[-2:] == [f"metadata/{prefix}snapshot.json", f"metadata/{prefix}targets.json"]


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_nothing_expired_is_taken(client: Client, repo: Repo, role: str) -> None:
    assert client.refresh() == 0
    signed: Any = getattr(repo, role)
    signed.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    repo.advance("targets")
    assert client.refresh() == 1
    assert client.version(role) == 1


def test_an_expired_root_is_kept_but_ends_the_refresh(client: Client, repo: Repo) -> None:
    assert client.refresh() == 0
    repo.root.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    repo.next_root()
    repo.advance("targets")
    assert client.refresh() == 1
    assert client.versions() == [2, 1, 1, 1]


def test_an_expired_local_timestamp_still_guards_against_rollback(client: Client, repo: Repo) -> None:
    repo.timestamp.version = 5
    repo.timestamp.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=5)
    repo.publish_timestamp()
    assert client.refresh() == 0
    while datetime.now(UTC) <= repo.timestamp.expires:
        threading.Event().wait(0.1)
    repo.timestamp.expires = repo.expires
    repo.timestamp.version = 4
    repo.publish_timestamp()
    assert client.refresh() == 1
    repo.timestamp.version = 6
    repo.publish_timestamp()
    assert client.refresh() == 0
    assert client.version("timestamp") == 6


def test_no_version_goes_back(client: Client, repo: Repo) -> None:
    repo.advance("targets")
    assert client.refresh() == 0
    assert client.versions() == [1, 2, 2, 2]
    repo.timestamp.version = 1
    repo.publish_timestamp()
    assert client.refresh() == 1, "timestamp"
    repo.timestamp.version, repo.snapshot.version = 3, 1
    repo.publish("targets")
    assert client.refresh() == 1, "snapshot named by the timestamp"
    repo.snapshot.version, repo.targets.version = 3, 1
    repo.timestamp.version = 4
    repo.publish("targets")
    assert client.refresh() == 1, "targets named by the snapshot"
    assert client.versions()[2:] == [2, 2]


def test_a_role_that_left_the_snapshot_is_refused(client: Client, repo: Repo) -> None:
    repo.delegate("targets", "team", ["*"])
    repo.advance("targets", "team")
    assert client.refresh() == 0
    del repo.snapshot.meta["team.json"]
    repo.advance("targets")
    assert client.refresh() == 1


def test_a_file_must_have_the_version_that_its_parent_names(client: Client, repo: Repo) -> None:
    repo.timestamp.snapshot_meta.version = 2
    repo.publish_timestamp()
    repo.served["metadata/2.snapshot.json"] = repo.served["metadata/1.snapshot.json"]
    assert client.refresh() == 1


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_hashes_and_lengths_that_a_parent_names_are_held(client: Client, repo: Repo, role: str) -> None:
    repo.with_hashes = True
    repo.advance("targets")
    name = f"metadata/2.{role}.json"
    good = repo.served[name]
    for bad in (good + b" ", good.replace(b'"version": 2', b'"version":  2')):
        assert bad != good
        repo.served[name] = bad
        assert client.refresh() == 1
    repo.served[name] = good
    assert client.refresh() == 0


def test_roots_are_followed_one_by_one_through_key_rotations(client: Client, repo: Repo) -> None:
    old = list(repo.keys["root"])
    repo.rotate("root")
    new = list(repo.keys["root"])
    repo.keys["root"] = old + new
    repo.next_root()
    repo.keys["root"] = new
    repo.rotate("timestamp")
    repo.next_root()
    repo.publish_timestamp()
    assert client.refresh() == 0
    assert client.version("root") == 3
    # A root that only the old key has signed, and one that skips a version, change nothing.
    repo.keys["root"] = old
    repo.next_root()
    assert client.refresh() == 1
    repo.keys["root"] = new
    repo.served["metadata/4.root.json"] = repo.sign("root", repo.root).replace(b'"version": 4', b'"version": 5')
    assert client.refresh() == 1
    assert client.version("root") == 3


def test_fast_forwarded_versions_are_forgotten_when_the_keys_rotate(client: Client, repo: Repo) -> None:
    repo.timestamp.version, repo.snapshot.version, repo.targets.version = 2**30, 2**30, 2**30
    repo.publish("targets")
    assert client.refresh() == 0
    for role in ("timestamp", "snapshot", "targets"):
        repo.rotate(role)
    repo.next_root()
    repo.timestamp.version, repo.snapshot.version, repo.targets.version = 1, 1, 1
    repo.publish("targets")
    assert client.refresh() == 0
    assert client.versions() == [2, 1, 1, 1]


def test_thresholds_count_keys_not_signatures(client: Client, repo: Repo) -> None:
    second = CryptoSigner.generate_ed25519()
    repo.root.add_key(second.public_key, "timestamp")
    repo.root.roles["timestamp"].threshold = 2
    repo.next_root()
    repo.publish_timestamp()
    assert client.refresh() == 1
    repo.keys["timestamp"] *= 2
    repo.publish_timestamp()
    assert client.refresh() == 1
    repo.keys["timestamp"] = [repo.keys["timestamp"][0], second]
    repo.publish_timestamp()
    assert client.refresh() == 0


def test_a_download_is_what_was_signed_or_nothing(client: Client, repo: Repo) -> None:
    assert client.download("dir/file.txt") == 1
    repo.add_file("dir/file.txt", b"good")
    repo.add_file("other.txt", b"other")
    repo.advance("targets")
    assert client.download("dir/file.txt") == 0
    assert client.kept() == [b"good"]
    fetched = [path for path in repo.asked if path.startswith("targets/")]
    assert client.download("dir/file.txt") == 0
    assert [path for path in repo.asked if path.startswith("targets/")] == fetched, "a good file is not fetched again"
    for path in [path for path in repo.served if path.startswith("targets/")]:
        repo.served[path] = b"evil!"
    assert client.download("dir/file.txt") == 0
    assert client.download("other.txt") == 1
    for path in [path for path in repo.served if path.startswith("targets/")]:
        repo.served[path] = b"longer than what was signed"
    assert client.download("other.txt") == 1
    assert client.kept() == [b"good"]
    repo.add_file("dir/file.txt", b"better")
    repo.advance("targets")
    assert client.download("dir/file.txt") == 0
    assert client.kept() == [b"better"]


def test_names_cannot_leave_their_folder(client: Client, repo: Repo, tmp_path: Path) -> None:
    repo.add_file("../../escaped", b"data")
    repo.delegate("targets", "../role", ["*"])
    repo.advance("targets", "../role")
    client.download("../../escaped")
    assert client.download("nothing") == 1
    assert f"metadata/2.{quote('../role', '')}.json" in repo.asked
    outside = {path.name for path in tmp_path.iterdir()} - {"client-metadata", "client-targets", "trusted.json"}
    assert outside == set()
    assert not (tmp_path.parent / "escaped").exists()


def test_delegations_are_walked_in_order_and_end_where_they_say(client: Client, repo: Repo) -> None:
    repo.delegate("targets", "a", ["*/*"])
    repo.delegate("a", "b", ["*/*"], terminating=True)
    repo.delegate("targets", "c", ["*/*"])
    repo.add_file("x/from-c", b"c", "c")
    repo.add_file("y/from-b", b"b", "b")
    repo.advance("targets", "a", "b", "c")
    assert client.download("y/from-b") == 0
    assert client.kept() == [b"b"]
    walked = [path.split(".")[1] for path in repo.asked if path.startswith("metadata/2.") and path.count(".") == 2]
    assert walked[-2:] == ["a", "b"]
    assert client.download("x/from-c") == 1, "b ends the walk"
    assert client.download("top-level") == 1, "no pattern matches"


def test_a_delegation_holds_only_for_its_paths_and_its_keys(client: Client, repo: Repo) -> None:
    repo.delegate("targets", "team", ["team/*"])
    repo.add_file("elsewhere/file", b"outside", "team")
    repo.add_file("team/file", b"inside", "team")
    repo.advance("targets", "team")
    assert client.download("elsewhere/file") == 1
    assert client.download("team/file") == 0
    repo.keys["team"] = [CryptoSigner.generate_ed25519()]
    repo.add_file("team/file", b"forged", "team")
    repo.advance("team")
    assert client.download("team/file") == 1
    assert client.kept() == [b"inside"]


def test_delegations_may_form_a_circle(client: Client, repo: Repo) -> None:
    repo.delegate("targets", "a", ["*"])
    repo.delegate("a", "b", ["*"])
    repo.delegate("b", "a", ["*"])
    repo.advance("targets", "a", "b")
    assert client.download("file") == 1


def test_hash_bins_are_found(client: Client, repo: Repo) -> None:
    key = CryptoSigner.generate_ed25519()
    bins = SuccinctRoles([], 1, 2, "bin")
    repo.targets.delegations = Delegations({}, None, bins)
    repo.targets.add_key(key.public_key)
    for name in bins.get_roles():
        repo.delegated[name], repo.keys[name] = Targets(expires=repo.expires), [key]
    repo.add_file("a/file", b"binned", bins.get_role_for_target("a/file"))
    repo.advance("targets", *bins.get_roles())
    assert client.download("a/file") == 0
    assert client.kept() == [b"binned"]


def test_endless_metadata_are_cut_off(client: Client, repo: Repo) -> None:
    repo.served["metadata/timestamp.json"] = repo.served["metadata/timestamp.json"] + b" " * 1_000_000
    assert client.refresh() == 1
    assert not (client.metadata / "timestamp.json").exists()


@pytest.mark.parametrize("cause", ["another-scheme", "no-server", "no-url"])
def test_a_repository_that_cannot_be_reached_is_a_plain_failure(client: Client, cause: str, tmp_path: Path) -> None:
    url = {"another-scheme": (tmp_path / "x").as_uri(), "no-server": "http://127.0.0.1:9", "no-url": ""}[cause]
    assert main(["tuf", "--metadata-dir", str(client.metadata), "--metadata-url", url, "refresh"]) == 1
