"""Danger: an upload that is cut, too long or not what it says is kept, or fills the disk."""

from __future__ import annotations

import hashlib
import io
import os
import socket
from urllib.parse import urlsplit

import pytest
from edgewise_protocol.bounds import CHUNK_BYTES, MIB
from edgewise_protocol.chunks import ChunkIndex, build_index
from edgewise_server.blobs.store import BlobStore
from edgewise_server.errors import DigestError, NotFoundError, TooLargeError
from edgewise_server.models.blobs import Blob
from edgewise_server.services import blobs
from sqlmodel import select


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * MIB + 7])
def test_a_file_and_its_chunk_index_come_back_as_they_went_in(api, size):
    data = os.urandom(size)
    answer = api.worker.put(f"/blobs/{sha256(data)}", content=data)
    assert answer.status_code == 201
    stored = answer.json()
    assert stored == {"sha256": sha256(data), "size": size, "chunk_index": sha256(build_index(io.BytesIO(data)))}
    assert api.viewer.get(f"/blobs/{sha256(data)}").content == data
    index = api.viewer.get(f"/blobs/{stored['chunk_index']}").content
    checked = ChunkIndex(index, sha256=stored["chunk_index"], file_sha256=sha256(data), file_length=size)
    checked.check(0, data[:CHUNK_BYTES])


def test_a_second_upload_changes_nothing_and_ranges_are_served(api):
    data = os.urandom(300_000)
    first = api.operator.put(f"/blobs/{sha256(data)}", content=data)
    again = api.operator.put(f"/blobs/{sha256(data)}", content=data)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    part = api.viewer.get(f"/blobs/{sha256(data)}", headers={"Range": "bytes=1000-1999"})
    assert (part.status_code, part.content) == (206, data[1000:2000])
    head = api.viewer.head(f"/blobs/{sha256(data)}")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "300000", b"")


def test_other_bytes_than_announced_are_refused_and_leave_nothing(api):
    data = os.urandom(200_000)
    answer = api.worker.put(f"/blobs/{sha256(data)}", content=data[:-1])
    assert (answer.status_code, answer.json()["code"]) == (422, "digest-mismatch")
    assert api.viewer.get(f"/blobs/{sha256(data)}").status_code == 404
    assert nothing_is_left(api)


@pytest.mark.parametrize("digest", ["abc", "A" * 64, "..%2f..%2fadmin.token", "0" * 63 + "g"])
def test_a_name_that_is_no_digest_reaches_no_file(api, digest):
    assert api.viewer.get(f"/blobs/{digest}").status_code in (404, 422)
    assert api.worker.put(f"/blobs/{digest}", content=b"x").status_code in (404, 405, 422)


def nothing_is_left(api) -> bool:
    folder = api.context.settings.state / "blobs"
    return not [path for path in folder.rglob("*") if path.is_file()]


def test_a_connection_that_breaks_leaves_nothing(api):
    data = os.urandom(3 * MIB)
    token = api.worker.headers["authorization"]
    address = urlsplit(api.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"PUT {address.path}/blobs/{sha256(data)} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[: 2 * MIB])
    # the same file can be uploaded at once, and then nothing else lies there
    assert api.worker.put(f"/blobs/{sha256(data)}", content=data).status_code == 201
    incoming = api.context.settings.state / "blobs" / "incoming"
    assert wait_until(lambda: list(incoming.iterdir()) == [])


def wait_until(condition, seconds: float = 10.0) -> bool:
    import threading
    import time

    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.01)
    return True


class TestBounds:
    @pytest.fixture
    def context(self, kit, tmp_path):
        opened = kit.make_state(tmp_path / "state", max_blob_bytes=100_000, blob_quota_bytes=150_000)
        yield opened
        opened.close()

    def test_files_beyond_the_bound_are_refused_announced_or_not(self, api):
        data = os.urandom(100_001)
        announced = api.worker.put(f"/blobs/{sha256(data)}", content=data)
        streamed = api.worker.put(f"/blobs/{sha256(data)}", content=iter([data[:50_000], data[50_000:]]))
        assert (announced.status_code, streamed.status_code) == (413, 413)
        assert announced.json()["code"] == streamed.json()["code"] == "too-large"
        assert nothing_is_left(api)

    def test_the_quota_counts_files_and_indexes(self, api):
        first, second = os.urandom(90_000), os.urandom(90_000)
        assert api.worker.put(f"/blobs/{sha256(first)}", content=first).status_code == 201
        for content in (second, iter([second])):
            answer = api.worker.put(f"/blobs/{sha256(second)}", content=content)
            assert (answer.status_code, answer.json()["code"]) == (507, "quota")
        with api.context.database.session(read_only=True) as session:
            assert blobs.used_bytes(session) == 90_000 + 32

    def test_other_bodies_are_bounded_too(self, api):
        answer = api.operator.post("/groups", content=b" " * (MIB + 1))
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
        answer = api.nobody.post("/enrol", content=iter([b" " * 100_000, b" " * 100_000]))
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


def test_the_store_discards_what_is_not_committed(tmp_path):
    store = BlobStore(tmp_path)
    with pytest.raises(TooLargeError), store.receive(10) as incoming:
        incoming.write(b"x" * 11)
    with pytest.raises(DigestError), store.receive(10) as incoming:
        incoming.write(b"x")
        incoming.commit("0" * 64)
    with pytest.raises(NotFoundError):
        store.open("0" * 64)
    assert list((tmp_path / "incoming").iterdir()) == []
    assert store.put(b"abc").size == 3
    with store.open(sha256(b"abc")) as source:
        assert source.read() == b"abc"


def test_a_file_that_is_another_files_index_gets_its_own_index(context):
    data = os.urandom(CHUNK_BYTES * 2)
    index = build_index(io.BytesIO(data))
    with context.database.session() as session:
        blobs.add(session, context.blobs, data)
        assert session.get(Blob, sha256(index)).chunk_index == ""
        assert blobs.add(session, context.blobs, index).chunk_index == sha256(build_index(io.BytesIO(index)))
        assert len(session.exec(select(Blob)).all()) == 3
