"""The danger: messages lost in silence, repeated under another number, or a disk that fills up."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from edgewise_agent.observe.errors import OutboxError, OversizeError
from edgewise_agent.observe.outbox import Outbox
from edgewise_protocol import messages
from edgewise_protocol.messages import Event, Streamed, Telemetry


def put_event(outbox: Outbox, text: str = "") -> None:
    outbox.put("event", lambda stream, seq, at: Event(stream=stream, seq=seq, at=at, kind="agent", text=text))


def put_telemetry(outbox: Outbox) -> None:
    outbox.put("telemetry", lambda stream, seq, at: Telemetry(stream=stream, seq=seq, at=at, window_s=1))


def test_messages_wait_in_order_until_acknowledged(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", 1 << 20)
    for i in range(5):
        put_event(outbox, str(i))
    items = outbox.pending(0, 10)
    assert [item.seq for item in items] == [1, 2, 3, 4, 5]
    found = [messages.decode(Event, item.payload) for item in items]
    assert [(e.text, e.seq, e.stream) for e in found] == [(str(i), i + 1, outbox.stream) for i in range(5)]
    assert [item.seq for item in outbox.pending(2, 2)] == [3, 4]
    outbox.acknowledge("another stream", 5)
    assert len(outbox) == 5
    outbox.acknowledge(outbox.stream, 3)
    assert [item.seq for item in outbox.pending(0, 10)] == [4, 5]
    assert len(outbox) == 2
    outbox.close()


def test_numbers_go_on_after_a_restart_even_when_all_was_acknowledged(tmp_path: Path) -> None:
    first = Outbox(tmp_path / "o.db", 1 << 20)
    put_event(first)
    put_event(first)
    first.acknowledge(first.stream, 10**15)
    stream = first.stream
    first.close()
    second = Outbox(tmp_path / "o.db", 1 << 20)
    put_event(second)
    assert second.stream == stream
    assert [item.seq for item in second.pending(0, 10)] == [3]
    second.close()


def test_what_was_put_survives_a_killed_process(tmp_path: Path) -> None:
    program = (
        "import os, pathlib\n"
        "from edgewise_agent.observe.outbox import Outbox\n"
        "from edgewise_protocol.messages import Event\n"
        f"outbox = Outbox(pathlib.Path({str(tmp_path / 'o.db')!r}), 1 << 20)\n"
        "for _ in range(3):\n"
        "    outbox.put('event', lambda stream, seq, at: Event(stream=stream, seq=seq, at=at, kind='agent'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == -9
    outbox = Outbox(tmp_path / "o.db", 1 << 20)
    assert [item.seq for item in outbox.pending(0, 10)] == [1, 2, 3]
    outbox.close()


def test_a_full_outbox_gives_up_telemetry_first_and_counts(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", 4_000)
    for _ in range(10):
        put_telemetry(outbox)
    for i in range(30):
        put_event(outbox, f"{i:03}" + "x" * 97)
    leaves = [item.leaf for item in outbox.pending(0, 100)]
    assert len(leaves) > 15
    kept = [item.payload.rsplit(b',"after":', 1)[0] + b"}" for item in outbox.pending(0, 100)]
    assert sum(len(payload) for payload in kept) <= 4_000
    assert "telemetry" not in leaves
    assert outbox.dropped == 40 - len(leaves)
    newest = messages.decode(Event, outbox.pending(0, 100)[-1].payload)
    assert newest.text.startswith("029")
    dropped = outbox.dropped
    put_telemetry(outbox)
    assert "event" in {item.leaf for item in outbox.pending(0, 100)}
    outbox.close()
    again = Outbox(tmp_path / "o.db", 4_000)
    assert again.dropped >= dropped
    again.close()


@pytest.mark.parametrize("damage", [b"", b"this is no database at all, only text" * 40])
def test_a_damaged_file_is_set_aside_and_said_so(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "o.db"
    first = Outbox(path, 1 << 20)
    for i in range(200):
        put_event(first, "y" * 500 + str(i))
    stream = first.stream
    first.close()
    data = bytearray(path.read_bytes())
    path.write_bytes(damage or bytes(data[:4096] + b"\xa5" * (len(data) - 4096)))
    second = Outbox(path, 1 << 20)
    assert second.stream != stream
    (item,) = second.pending(0, 10)
    event = messages.decode(Event, item.payload)
    assert (event.kind, event.code) == ("agent", "outbox-damaged")
    assert (tmp_path / "o.db.damaged").exists()
    put_event(second)
    assert len(second) == 2
    second.close()


def test_damage_found_while_running_costs_what_was_there_but_not_the_new_message(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    outbox = Outbox(path, 1 << 24)
    for i in range(300):
        put_event(outbox, "z" * 1000 + str(i))
    other = sqlite3.connect(path)
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\x5a" * (size - 4096))
    put_event(outbox, "after")
    put_event(outbox, "and after")
    texts = [messages.decode(Event, item.payload).text for item in outbox.pending(0, 1000)]
    assert "after" in texts
    assert "and after" in texts
    outbox.close()


def test_a_disk_that_refuses_costs_the_message_and_is_counted(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", 1 << 20)
    put_event(outbox)
    outbox._db.execute("PRAGMA max_page_count = 1")
    for _ in range(100):
        put_event(outbox, "w" * 1000)
    lost = outbox.dropped
    assert lost > 0
    outbox._db.execute("PRAGMA max_page_count = 1000000")
    put_event(outbox, "room again")
    outbox.close()
    again = Outbox(tmp_path / "o.db", 1 << 20)
    assert again.dropped == lost
    assert messages.decode(Event, again.pending(0, 1000)[-1].payload).text == "room again"
    again.close()


def test_too_long_a_message_is_refused(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", 1 << 20)
    with pytest.raises(OversizeError):
        outbox.put(
            "event",
            lambda stream, seq, at: Event(
                stream=stream, seq=seq, at=at, kind="agent", data={str(i): "v" * 100 for i in range(1000)}
            ),
        )
    put_event(outbox)
    assert [item.seq for item in outbox.pending(0, 10)] == [1]
    outbox.close()


def test_many_threads_put_without_a_gap_or_a_repeat(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", 1 << 20)
    told = threading.Semaphore(0)
    outbox.on_put = told.release
    threads = [threading.Thread(target=lambda: [put_event(outbox) for _ in range(10)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        assert told.acquire(timeout=20)
    for thread in threads:
        thread.join()
    assert [item.seq for item in outbox.pending(0, 100)] == list(range(1, 61))
    outbox.close()


def test_an_unusable_place_is_the_outboxs_error(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match="cannot be opened"):
        Outbox(tmp_path / "absent" / "o.db", 1 << 20)


def test_the_callback_may_use_the_outbox(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", 1 << 20)
    seen: list[int] = []

    def on_put() -> None:
        reader = threading.Thread(target=lambda: seen.append(len(outbox.pending(0, 10))))
        reader.start()
        reader.join(10)

    outbox.on_put = on_put
    made: list[Streamed] = []
    outbox.put("event", lambda s, n, t: made.append(Event(stream=s, seq=n, at=t, kind="agent")) or made[-1])  # type: ignore[func-returns-value]
    assert seen == [1]
    outbox.close()


def test_pending_is_bounded(tmp_path: Path, monkeypatch: Any) -> None:
    outbox = Outbox(tmp_path / "o.db", 1 << 22)
    put_event(outbox)
    assert outbox.pending(0, -5) == []
    assert len(outbox.pending(0, 10**9)) == 1
    outbox.close()
