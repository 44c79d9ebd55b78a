"""Danger: a group selects other devices than its query says, or a query can hang or crash the server."""

from __future__ import annotations

import pytest
from edgewise_server.errors import QueryError
from edgewise_server.groups.query import parse
from edgewise_server.models.devices import Device
from hypothesis import given, settings
from hypothesis import strategies as st

FACTS = {
    "id": "cam-1",
    "channel": "lab",
    "machine": "aarch64",
    "compatible": ["raspberrypi,4-model-b", "raspberry-pi-4-64"],
    "cpu_features": ["asimd"],
    "cpu_count": 4,
    "memory_mib": 1024,
    "simulated": False,
    "online": True,
    "agent_version": "0.10.0",
    "engine.onnxruntime": "1.32.0",
}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("channel == lab", True),
        ("channel == lab and machine == aarch64", True),
        ("channel == lab and machine == x86_64", False),
        ("machine == x86_64 or machine == aarch64", True),
        ("machine in (x86_64, aarch64)", True),
        ("machine in (x86_64)", False),
        ("machine != x86_64", True),
        ("not machine == x86_64", True),
        ("not (machine == aarch64 and online == true)", False),
        ("channel == other or channel == lab and machine == x86_64", False),
        ("(channel == other or channel == lab) and machine == aarch64", True),
        ("compatible == raspberry-pi-4-64", True),
        ('compatible == "raspberrypi,4-model-b"', True),
        ("compatible != raspberry-pi-5", True),
        ("cpu_features == asimd and cpu_count >= 4", True),
        ("memory_mib < 1024", False),
        ("memory_mib <= 1024", True),
        ("simulated == true", False),
        ("agent_version >= 0.9.1", True),
        ("agent_version < 0.9", False),
        ("engine.onnxruntime > 1.31", True),
        ("engine.litert > 0", False),
        ("engine.litert != 2.0", False),
        ("storage_free_mib >= 0", False),
        ('id == "and"', False),
    ],
)
def test_queries_mean_what_they_say(query, expected):
    assert parse(query)(FACTS) is expected


@pytest.mark.parametrize(
    "query",
    [
        "", "   ", "channel", "channel ==", "== lab", "channel == lab and", "and", "channel lab", "channel == lab lab",
        "(channel == lab", "channel == lab)", "colour == red", "engine. == 1", "channel < lab", "memory_mib == many",
        "memory_mib == -1", "simulated == 1", "machine in ()", "machine in aarch64", "channel == and", "a;b",
        "not not channel == lab", "agent_version > latest", "x" * 501, "(" * 9 + "channel == lab" + ")" * 9,
        " or ".join(["id == a"] * 40), "channel == 'lab'", "__class__ == x", "channel == \x00",
    ],
)  # fmt: skip
def test_queries_that_say_nothing_clear_are_refused(query):
    with pytest.raises(QueryError):
        parse(query)


WORDS = st.sampled_from(
    [*FACTS, "and", "or", "not", "in", "(", ")", ",", "==", "!=", "<", ">=", "lab", "true", "7", '"x"', "aarch64"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=40).map(" ".join) | st.text(max_size=60))
def test_any_text_is_either_a_query_or_refused(text):
    try:
        predicate = parse(text)
    except QueryError:
        return
    assert predicate(FACTS) in (True, False)
    assert predicate({}) in (True, False)


@pytest.fixture
def fleet(api, kit):
    """Five devices in two channels."""
    with api.context.database.session() as session:
        for number in range(5):
            session.add(
                Device(
                    id=f"cam-{number}",
                    channel="lab" if number < 3 else "canary",
                    certificate_serial=str(number + 1),
                    certificate_not_after=kit.expiring(300),
                    facts={
                        "machine": "aarch64" if number % 2 else "x86_64",
                        "compatible": ["board"],
                        "engines": {"onnxruntime": "1.32.0"},
                        "memory_mib": 512 * (number + 1),
                    },
                )
            )
    return api


def ids(answer):
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


def test_devices_are_paged_in_order(fleet):
    first = fleet.viewer.get("/devices", params={"limit": 2})
    assert (ids(first), first.json()["next"]) == (["cam-0", "cam-1"], "cam-1")
    rest = fleet.viewer.get("/devices", params={"limit": 3, "after": "cam-1"})
    assert (ids(rest), rest.json()["next"]) == (["cam-2", "cam-3", "cam-4"], None)


def test_devices_are_selected_by_channel_query_and_group(fleet):
    fleet.operator.post("/groups", json={"name": "bench"}).raise_for_status()
    fleet.operator.put("/groups/bench/devices/cam-1").raise_for_status()
    fleet.operator.put("/groups/bench/devices/cam-1").raise_for_status()
    fleet.operator.put("/groups/bench/devices/cam-4").raise_for_status()
    made = fleet.operator.post("/groups", json={"name": "big", "query": "memory_mib >= 1536 and channel == canary"})
    assert made.json() == {"name": "big", "query": "memory_mib >= 1536 and channel == canary", "members": 2}
    assert ids(fleet.viewer.get("/devices", params={"channel": "canary"})) == ["cam-3", "cam-4"]
    assert ids(fleet.viewer.get("/devices", params={"q": "machine == aarch64"})) == ["cam-1", "cam-3"]
    assert ids(fleet.viewer.get("/devices", params={"group": "bench"})) == ["cam-1", "cam-4"]
    assert ids(fleet.viewer.get("/devices", params={"group": "big", "q": "machine == aarch64"})) == ["cam-3"]
    assert ids(fleet.viewer.get("/devices", params={"group": "all"})) == [f"cam-{n}" for n in range(5)]
    assert fleet.viewer.get("/groups/big").json()["devices"] == ["cam-3", "cam-4"]
    assert {g["name"]: g["members"] for g in fleet.viewer.get("/groups").json()["items"]} == {
        "all": 5,
        "bench": 2,
        "big": 2,
    }
    assert fleet.operator.delete("/groups/bench/devices/cam-1").status_code == 204
    assert fleet.viewer.get("/groups/bench").json()["devices"] == ["cam-4"]
    assert fleet.operator.delete("/groups/bench").status_code == 204
    assert fleet.viewer.get("/devices/cam-4").json()["groups"] == []


def test_revoked_devices_leave_their_groups_but_stay_listed(fleet, api):
    with api.context.database.session() as session:
        session.get(Device, "cam-0").online = True
        session.commit()
    assert fleet.viewer.get("/devices/cam-0").json()["online"] is True
    fleet.operator.post("/devices/cam-0/revoke").raise_for_status()
    assert fleet.viewer.get("/groups/all").json()["members"] == 4
    revoked = fleet.viewer.get("/devices/cam-0").json()
    assert revoked["revoked_at"] is not None
    assert revoked["online"] is False, "its last will is not taken in, so nothing else would say so"


def test_what_a_device_reports_is_summed_up(fleet):
    report = {
        "model": "digits", "state": "failed", "since": 1.0, "active_version": 1, "target_version": 2,
        "error_code": "self-test",
    }  # fmt: skip
    with fleet.context.database.session() as session:
        device = session.get(Device, "cam-2")
        device.reported = {"at": 1.0, "assignment_version": 3, "models": [report]}
    item = fleet.viewer.get("/devices/cam-2").json()
    assert item["models"] == [
        {"model": "digits", "state": "failed", "active_version": 1, "target_version": 2, "error_code": "self-test"}
    ]
    assert item["reported"]["assignment_version"] == 3


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/groups", {"name": "all"}, 409),
        ("POST", "/groups", {"name": "a/b"}, 422),
        ("POST", "/groups", {"name": "x", "query": "colour == red"}, 422),
        ("PUT", "/groups/all/devices/cam-1", None, 409),
        ("PUT", "/groups/none/devices/cam-1", None, 404),
        ("DELETE", "/groups/all", None, 409),
        ("DELETE", "/groups/none", None, 404),
        ("GET", "/devices?q=colour", None, 422),
        ("GET", "/devices?group=none", None, 404),
        ("GET", "/devices?limit=0", None, 422),
        ("GET", "/devices/none", None, 404),
        ("POST", "/devices/none/revoke", None, 404),
        ("DELETE", "/devices/none", None, 404),
        ("DELETE", "/enrolments/none", None, 404),
        ("DELETE", "/tokens/none", None, 404),
        ("PATCH", "/devices", None, 405),
        ("GET", "/nothing", None, 404),
    ],
)
def test_refusals_have_the_right_status_and_a_problem_document(fleet, method, path, body, status):
    answer = fleet.admin.request(method, path, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status and answer.json()["code"]
