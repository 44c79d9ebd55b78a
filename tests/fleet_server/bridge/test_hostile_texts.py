"""Danger: a text that one database cannot store makes the bridge store a whole batch one by one: one hostile device
then holds up the fleet, as often as it likes."""

from __future__ import annotations

import pytest
from edgewise_protocol.errors import MalformedError
from edgewise_protocol.messages import Event, Reported, Status, encode
from edgewise_server.bridge.sorting import ReportedItem, sort
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Device
from edgewise_server.services import ingest, presence
from sqlalchemy.exc import DataError

NUL = "a\x00b"


def test_postgresql_stores_no_such_text(kit, tmp_path, postgres):
    """What the check below keeps out; if this ever passes, it is needed no more."""
    context = kit.make_state(tmp_path / "state", database_url=postgres.make_migrated())
    try:
        with context.database.session() as session:
            session.add(Device(id="cam", channel="lab", certificate_serial="1", certificate_not_after=utc_now()))
        item = sort("ew/1/dev/cam/event", encode(Event(stream="s", seq=1, at=1.0, kind="agent", text=NUL)))
        with context.database.session() as session:
            assert ingest.store(session, [item], 1.0) == [("cam", "s", 1)]
        with pytest.raises((DataError, ValueError)), context.database.session() as session:
            presence.record_status(session.get(Device, "cam"), Status(online=True, session=NUL), 1.0)
    finally:
        context.close()


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ("status", Status(online=True, session=NUL)),
        ("reported", Reported(at=1.0, assignment_version=1, error=NUL)),
        ("event", Event(stream=NUL, seq=1, at=1.0, kind="agent")),
        ("event", Event(stream=NUL, seq=1, at=1.0, kind="agent", code="c" * 65)),
    ],
)
def test_such_a_message_is_refused_before_it_is_in_a_batch(leaf, message):
    with pytest.raises(MalformedError):
        sort(f"ew/1/dev/cam/{leaf}", encode(message))


def test_a_text_that_only_speaks_of_it_is_taken():
    message = Reported(at=1.0, assignment_version=1, error="the file began with \\u0000")
    assert sort("ew/1/dev/cam/reported", encode(message)) == ReportedItem("cam", message)
