"""`init`: makes a state folder. Safe to repeat: nothing that is there is replaced."""

from __future__ import annotations

import json
from pathlib import Path

from edgewise_server.context import ADMIN_TOKEN_FILE, BLOBS_FOLDER, KEYS_FOLDER, ONLINE_FILE, online_description
from edgewise_server.db import Database
from edgewise_server.files import write_atomic
from edgewise_server.pki.authority import create_authority
from edgewise_server.schema import upgrade
from edgewise_server.services import audit, identity, tokens
from edgewise_server.settings import Settings
from edgewise_server.trust.keys import create_keys


def initialize(settings: Settings) -> str | None:
    """Make online keys, CA key and database; returns the first admin token, or None if there are tokens.

    The token is also written to `admin.token` (0600); `online.json` is for the key ceremony.
    """
    state = settings.state
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    (state / BLOBS_FOLDER).mkdir(mode=0o700, exist_ok=True)
    keys = create_keys(state / KEYS_FOLDER)
    authority = create_authority(state / KEYS_FOLDER)
    online = state / ONLINE_FILE
    if not online.exists():
        write_atomic(online, (json.dumps(online_description(keys, authority), indent=1) + "\n").encode())
    database = Database(settings.url)
    try:
        upgrade(database)
        return _first_token(database, state / ADMIN_TOKEN_FILE)
    finally:
        database.close()


def make_token(
    settings: Settings, name: str, role: str, expires_in_s: float | None, *, revoke_others: bool = False
) -> str:
    """Make a token at the console, for whoever may read the state folder.

    Args:
        revoke_others: also end every other token, the first admin's file too, and every enrolment that is not used
            yet: whoever copied the state folder may hold them, or have made some.
    """
    database = Database(settings.url)
    try:
        upgrade(database)
        with database.session() as session:
            if revoke_others:
                ended = {"tokens": tokens.delete_all(session), "enrolments": identity.withdraw_open(session)}
                audit.record(session, "console", "token.revoke-others", "tokens", ended)
            token, secret = tokens.create(session, name, role, expires_in_s)
            audit.record(session, "console", "token.create", token.id, {"name": name, "role": role})
        if revoke_others:
            (settings.state / ADMIN_TOKEN_FILE).unlink(missing_ok=True)
        return secret
    finally:
        database.close()


def _first_token(database: Database, path: Path) -> str | None:
    with database.session() as session:
        if tokens.all_tokens(session):
            return None
        token, secret = tokens.create(session, "admin", "admin")
        audit.record(session, "console", "token.create", token.id, {"name": "admin", "role": "admin"})
        # written before the commit: a token that nobody knows would lock everybody out
        write_atomic(path, (secret + "\n").encode(), 0o600)
    return secret
