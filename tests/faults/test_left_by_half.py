"""Guards against what a kill or a full disk leaves by half: a bundle, a message, a deployment, a link to the root."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from edgewise_agent.durable import sweep, write_atomic
from edgewise_agent.errors import AgentError
from edgewise_agent.install import events as on
from edgewise_agent.install.effects import Download
from edgewise_agent.install.state import ModelState
from edgewise_agent.install.table import step, waits_for_disk
from edgewise_agent.observe import outbox as outbox_module
from edgewise_agent.observe.outbox import Outbox
from edgewise_agent.store.store import RECORD, Store
from edgewise_agent.trust.updater import DurableUpdater
from edgewise_protocol.messages import Event
from edgewise_protocol.targets import SignedFile
from msgspec.structs import replace
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", min_free_mib=0)


def take_in(store: Store, file: SignedFile, data: bytes) -> Path:
    part = store.partial("install", file.sha256)
    part.write_bytes(data)
    store.unpack(part, file)
    return store.open(file.sha256).folder


def test_a_bundle_whose_removal_was_cut_off_is_no_bundle(
    store: Store, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would pass for installed, and fail its self-test for good."""
    file, data = simulator.make_bundle(1)
    folder = take_in(store, file, data)

    def die(path: Path, **_how: Any) -> None:
        (path / "golden.safetensors").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        store.collect(())
    assert folder.exists() and not store.has(file)
    with pytest.raises(AgentError):
        store.open(file.sha256)
    take_in(store, file, data)
    assert store.has(file)
    store.collect({file.sha256})
    assert [path.name for path in folder.parent.iterdir()] == [file.sha256]


def test_a_serving_bundle_that_is_signed_under_another_name_is_never_away(store: Store, simulator: Any) -> None:
    file, data = simulator.make_bundle(1)
    folder = take_in(store, file, data)
    before = (folder / "model.onnx").stat().st_ino
    again = replace(file, path="lab/tiny/test-board/other.ewb")
    take_in(store, again, data)
    assert store.has(again) and not store.has(file)
    assert (folder / "model.onnx").stat().st_ino == before
    (folder / "model.onnx").write_bytes(b"damaged")
    take_in(store, file, data)
    assert store.has(file) and (folder / RECORD).exists()


def test_a_disk_that_refuses_the_outbox_costs_no_start_and_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "_REOPEN_S", 0.0)
    path = tmp_path / "outbox.sqlite"

    def put(outbox: Outbox, text: str) -> None:
        outbox.put("event", lambda s, n, t: Event(stream=s, seq=n, at=t, kind="agent", code="test", text=text))

    outbox = Outbox(path, 1 << 20)
    put(outbox, "before")
    stream = outbox.stream
    outbox.close()
    hindrance = path.with_name(path.name + "-wal")
    hindrance.mkdir()
    outbox = Outbox(path, 1 << 20)
    put(outbox, "in memory")
    assert (len(outbox), outbox.dropped) == (1, 0) and outbox.stream != stream
    hindrance.rmdir()
    put(outbox, "in memory, since the server has not stored the first")
    assert outbox.stream != stream and len(outbox) == 2
    outbox.acknowledge(outbox.stream, 2)
    put(outbox, "in the file")
    assert outbox.stream == stream and [item.seq for item in outbox.pending(0, 10)] == [1, 2]
    outbox.close()


@pytest.mark.parametrize("code", ["storage", "disk-full", "disk-space"])
def test_an_installation_that_only_the_disk_kept_from_succeeding_is_tried_again(simulator: Any, code: str) -> None:
    """Within the same assignment, unlike any other failure (R3)."""
    file, _ = simulator.make_bundle(2)
    assigned = on.Assigned(
        at=1.0, target=file, installed=False, assignment_version=7, deployment="d", confirm_within_s=60.0
    )
    state, _ = step(ModelState(model="tiny"), assigned)
    failed, _ = step(state, on.Failed(at=2.0, sha256=file.sha256, code=code, text="no space"))
    assert failed.state == "failed" and failed.error_code == code and waits_for_disk(failed)
    again, effects = step(failed, replace_at(assigned, 3.0))
    assert again.state == "downloading" and Download(file) in effects and not again.error_code
    other, _ = step(state, on.Failed(at=2.0, sha256=file.sha256, code="self-test", text="wrong"))
    assert not waits_for_disk(other) and step(other, replace_at(assigned, 3.0)) == (other, ())


def replace_at(event: on.Assigned, at: float) -> on.Assigned:
    return on.Assigned(**{**{name: getattr(event, name) for name in event.__dataclass_fields__}, "at": at})


def test_temporary_files_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    left = [tmp_path / ".installed.json.abc.tmp", tmp_path / "metadata" / ".root.json.tmp"]
    for path in left:
        path.write_bytes(b"half")
    write_atomic(tmp_path / "clock", b"1")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["clock"]


class Files(FetcherInterface):
    """python-tuf's fetcher over a table."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def _fetch(self, url: str) -> Any:
        name = url.removeprefix("mqtt:/")
        if name not in self.files:
            raise DownloadHTTPError(f"no {name}", 404)
        return iter([self.files[name]])


def test_the_link_to_the_root_never_goes_back(tmp_path: Path, simulator: Any) -> None:
    """python-tuf would point it at the enrolment's root at every start, and remove it before each change."""
    repository = simulator.Repository()
    first = repository.root_bytes
    repository.root.signed.version += 1
    repository.root.sign(repository.signers["root"])
    files = {"1.root.json": first, **repository.files()}
    link = tmp_path / "root.json"
    DurableUpdater(str(tmp_path), "mqtt:/", fetcher=Files(files), bootstrap=first).refresh()
    assert link.readlink() == Path("root_history/2.root.json")
    before = {path: path.lstat().st_ino for path in tmp_path.rglob("*")}
    DurableUpdater(str(tmp_path), "mqtt:/", fetcher=Files({}), bootstrap=first)
    assert {path: path.lstat().st_ino for path in tmp_path.rglob("*")} == before
