"""Danger: somebody adds a route that needs no token, or gives a low role too much."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from edgewise_server.api import routers
from edgewise_server.api.auth import OPEN, PREFIX, ROLES, permits
from edgewise_server.errors import DatabaseUnavailableError, SettingsError
from edgewise_server.models.access import Token
from edgewise_server.models.base import utc_now
from edgewise_server.services import tokens
from fastapi import APIRouter
from sqlmodel import select

ALL_ROUTES = [
    (method, route.path, getattr(routers.demands(route.dependant), "allowed", ()))
    for route in routers.routes()
    for method in sorted(route.methods)
]
CLOSED = [entry for entry in ALL_ROUTES if (entry[0], PREFIX + entry[1]) not in OPEN]

# What the lowest role may at most do, route by route: a change of these is a decision, not a slip.
EXPECTED_OPEN = {("GET", "/health"), ("POST", "/enrol"), ("POST", "/renew"), ("POST", "/renew/nonce")}
ADMIN_ONLY = {
    ("POST", "/tokens"),
    ("GET", "/tokens"),
    ("DELETE", "/tokens/{token_id}"),
    ("PUT", "/trust"),
    ("PUT", "/trust/fleet-ca"),
}
WORKER_WRITES = {
    ("PUT", "/metadata/delegated/{role:path}"),
    ("POST", "/attestations"),
    ("PUT", "/blobs/{sha256}"),
    ("PUT", "/federations/{federation_id}/rounds/{number}/offer"),
    ("POST", "/jobs/claim"),
    ("POST", "/jobs/{job_id}/heartbeat"),
    ("POST", "/jobs/{job_id}/finish"),
    ("POST", "/jobs/{job_id}/fail"),
}


def concrete(path: str) -> str:
    """A path with its parameters filled in, so that it reaches the route."""
    filled = path.replace("{sha256}", "0" * 64)
    return re.sub(r"\{(version|number|alert_id|job_id)\}", "1", re.sub(r"\{\w+:path\}", "auto/lab", filled)).replace(
        "{", ""
    ).replace("}", "")  # fmt: skip


def test_the_enumeration_sees_the_whole_api(api):
    served = {
        (method.upper(), path.removeprefix(PREFIX))
        for path, operations in api.nobody.get("/openapi.json").json()["paths"].items()
        for method in operations
    }
    enumerated = {(m, re.sub(r":path\}", "}", p)) for m, p, _ in ALL_ROUTES}
    assert served <= enumerated
    assert len(ALL_ROUTES) > 50


def test_only_health_and_enrolment_are_open():
    open_routes = {(m, p) for m, p, _ in ALL_ROUTES if (m, PREFIX + p) in OPEN}
    assert open_routes == EXPECTED_OPEN


def test_a_token_that_cannot_be_looked_up_is_not_called_wrong(api, monkeypatch):
    def find(*_):
        raise DatabaseUnavailableError("the database cannot be used: see that it runs")

    monkeypatch.setattr(tokens, "find", find)
    answer = api.nobody.get(f"{PREFIX}/status", headers={"Authorization": "Bearer ew_some"})
    assert (answer.status_code, answer.json()["code"]) == (503, "database-unavailable")


@pytest.mark.parametrize("header", [None, "Bearer ew_wrong", "Bearer", "Basic YTpi", "Bearer " + "x" * 5000])
def test_without_a_valid_token_every_route_answers_401(api, header):
    headers = {"Authorization": header} if header is not None else {}
    for method, path, _ in CLOSED:
        # a body that is no JSON: it must not even be parsed
        answer = api.nobody.request(method, concrete(path), headers=headers, content=b"{not json")
        assert answer.status_code == 401, (method, path)
        if method != "HEAD":
            assert answer.json()["code"] == "unauthenticated"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert api.nobody.get("/no/such/route").status_code == 401


@pytest.mark.parametrize("role", ROLES)
def test_with_too_low_a_role_every_route_answers_403(api, role):
    client = getattr(api, role)
    refused = 0
    for method, path, allowed in CLOSED:
        assert allowed, f"{method} {path} demands no role"
        answer = client.request(method, concrete(path))
        if permits(role, allowed):
            assert answer.status_code not in (401, 403), (method, path, answer.text)
        else:
            refused += 1
            assert answer.status_code == 403, (method, path, answer.text)
            assert method == "HEAD" or answer.json()["code"] == "forbidden"
    assert (refused > 0) == (role != "admin")


def test_viewers_write_nothing_and_workers_only_what_is_theirs():
    for method, path, allowed in CLOSED:
        if method not in ("GET", "HEAD"):
            assert not permits("viewer", allowed), (method, path)
            assert permits("worker", allowed) == ((method, path) in WORKER_WRITES), (method, path)
        assert permits("operator", allowed) == ((method, path) not in ADMIN_ONLY | worker_only()), (method, path)


def worker_only():
    return {(m, p) for m, p, allowed in CLOSED if allowed == ("worker",)}


def test_an_added_open_route_stops_the_start(monkeypatch):
    careless = APIRouter()
    careless.add_api_route("/secrets", lambda: {"all": 1}, methods=["GET"])
    monkeypatch.setattr(routers, "ROUTERS", (*routers.ROUTERS, careless))
    with pytest.raises(SettingsError, match="/secrets"):
        routers.check_routes()


def test_tokens_end_when_revoked_or_expired_and_are_kept_as_hashes(api):
    made = api.admin.post("/tokens", json={"name": "ci", "role": "viewer", "expires_in_s": 3600}).json()
    assert re.fullmatch(r"ew_[\w-]{43}", made["token"])
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert api.nobody.get("/status", headers=headers).status_code == 200
    with api.context.database.session() as session:
        row = session.exec(select(Token).where(Token.id == made["id"])).one()
        assert made["token"] not in row.model_dump_json()
        row.expires_at = utc_now() - timedelta(seconds=1)
    assert api.nobody.get("/status", headers=headers).status_code == 401
    other = api.admin.post("/tokens", json={"name": "ci2", "role": "viewer"}).json()
    headers = {"Authorization": f"Bearer {other['token']}"}
    assert api.nobody.get("/status", headers=headers).status_code == 200
    assert api.admin.delete(f"/tokens/{other['id']}").status_code == 204
    assert api.nobody.get("/status", headers=headers).status_code == 401
    listed = api.admin.get("/tokens").text
    assert other["token"] not in listed and "sha256" not in listed


@pytest.mark.parametrize("body", [{"name": "x", "role": "root"}, {"name": "../x", "role": "viewer"}, {"name": "x"}, {}])
def test_malformed_tokens_are_refused(api, body):
    answer = api.admin.post("/tokens", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
