"""Danger: what was copied with the state folder, or made with the token in it, still opens the server afterwards."""

from __future__ import annotations

from typing import Any

from edgewise_server.context import ADMIN_TOKEN_FILE
from edgewise_server.setup import make_token


def test_one_command_ends_every_other_token_and_open_enrolment(trusted_api: Any) -> None:
    settings = trusted_api.context.settings
    (settings.state / ADMIN_TOKEN_FILE).write_text("the first token, which the thief has read")
    made_by_thief = trusted_api.admin.post("/tokens", json={"name": "innocent", "role": "admin"}).json()["token"]
    enrolment = trusted_api.operator.post("/enrolments", json={"channel": "lab"}).json()

    def opens(token: str) -> bool:
        answer = trusted_api.nobody.get("/tokens", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code in (200, 401)
        return bool(answer.status_code == 200)

    assert opens(made_by_thief)
    plain = make_token(settings, "second", "admin", None)
    assert opens(plain) and opens(made_by_thief), "the control: a further token alone ends no other"
    after = make_token(settings, "after", "admin", None, revoke_others=True)
    assert opens(after)
    assert not opens(made_by_thief) and not opens(plain)
    assert trusted_api.admin.get("/tokens").status_code == 401
    assert not (settings.state / ADMIN_TOKEN_FILE).exists()
    who = {"Authorization": f"Bearer {after}"}
    assert trusted_api.nobody.get("/enrolments", headers=who).json()["items"] == []
    assert enrolment["id"]
    audit = trusted_api.nobody.get("/audit", headers=who)
    assert audit.status_code == 200 and "token.revoke-others" in audit.text
