"""The danger: a main job that works where everybody trusts everybody, and not in the open.

The course of `test_main_job.py`, test by test, over Mosquitto with mutual TLS and an access list as
`init --broker mosquitto` wrote them; and once more with PostgreSQL in place of SQLite.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location("end_to_end_course", Path(__file__).with_name("test_main_job.py"))
assert _spec is not None and _spec.loader is not None
course = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = course
_spec.loader.exec_module(course)

fleet = course.fleet


@pytest.fixture(
    scope="module", params=["secured_fleet", pytest.param("secured_fleet_on_postgresql", marks=pytest.mark.slow)]
)
def empty_fleet(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The fleet that the course runs over."""
    yield request.getfixturevalue(request.param)


globals().update({name: test for name, test in vars(course).items() if name.startswith("test_")})


def test_nothing_was_unsecured(fleet: Any) -> None:
    broker = fleet.get("/status")["broker"]
    assert broker == {"host": "127.0.0.1", "port": fleet.broker.port, "tls": True}
    for device in fleet.devices:
        assert fleet.client(fleet.tls(device.state)).outcome == "Success", "this test's own view of the broker"
    text = (fleet.broker.files / "mosquitto.conf").read_text()
    assert "require_certificate true" in text and "allow_anonymous false" in text
    log = fleet.broker.process.text
    # A client that ends a connection without TLS's goodbye, as a killed one does, is no error of the broker's.
    errors = [line for line in log.splitlines() if "rror" in line and "unexpected eof" not in line]
    assert not errors, log
