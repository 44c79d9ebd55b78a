"""Rotation of the online keys: after a theft, the server makes new ones, and the offline keys put them into force.

    edgewise-server rotate-keys --state STATE      new keys beside the old ones; `online.json` for the ceremony
    edgewise keys rotate-online KEYS --online ...  the offline keys sign root, targets and the intermediate
    edgewise trust install KEYS                    the server takes them in, and forgets the old keys

Between the first step and the last both keys are there, and the trusted metadata say which one signs: so
every step may be repeated, and a crash between any two of them loses nothing.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Final

from edgewise_server.context import KEYS_FOLDER, ONLINE_FILE, Context, online_description
from edgewise_server.db import Database
from edgewise_server.errors import ConflictError
from edgewise_server.files import write_atomic
from edgewise_server.models.trust import FleetCa
from edgewise_server.pki import authority
from edgewise_server.services import audit
from edgewise_server.settings import Settings
from edgewise_server.trust import keys
from edgewise_server.trust.documents import SNAPSHOT, TIMESTAMP
from edgewise_server.trust.keys import NEXT_FOLDER, ONLINE_ROLES, key_path
from edgewise_server.trust.rules import keys_of_role

log = logging.getLogger(__name__)
_ROOT_ROLES: Final = (SNAPSHOT, TIMESTAMP)


def begin(settings: Settings) -> Path:
    """Make new online keys and a new intermediate key, beside those in force; returns the path of `online.json`.

    Repeating it changes nothing until the rotation is finished.

    Raises:
        ConflictError: before the first ceremony: there is nothing to rotate yet.
    """
    folder = settings.state / KEYS_FOLDER
    database = Database(settings.url)
    try:
        with database.session() as session:
            if session.get(FleetCa, 1) is None:
                raise ConflictError("no trust is installed yet: there is nothing to rotate before the first ceremony")
            newer = folder / NEXT_FOLDER
            newer.mkdir(mode=0o700, exist_ok=True)
            for role in ONLINE_ROLES:
                keys.make_key(newer, role)
            authority.make_key(newer)
            audit.record(session, "console", "keys.rotate", "online")
    finally:
        database.close()
    described = online_description(keys.load_keys(folder), authority.load_authority(folder))
    path = settings.state / ONLINE_FILE
    write_atomic(path, (json.dumps(described, indent=1) + "\n").encode())
    return path


def settle(context: Context) -> bool:
    """Put the old keys away once the trusted metadata name all new ones; returns whether that is so.

    The old keys are overwritten: stolen or not, nothing is to be signed with them any more.
    """
    folder = context.settings.state / KEYS_FOLDER
    newer = folder / NEXT_FOLDER
    if not newer.is_dir():
        return False
    context.keys.refresh()
    context.authority.refresh()
    with context.database.session(read_only=True) as session:
        ca = session.get(FleetCa, 1)
        if ca is None:
            return False
        trusted = context.repository.current(session)
        root, targets = trusted.root.signed, trusted.targets.signed
        named = {role: [root.keys[k] for k in root.roles[role].keyids if k in root.keys] for role in _ROOT_ROLES}
        named |= {"director": list(keys_of_role(root, targets, "director").values())}
        in_force = all(
            any(keys.same_key(key, context.keys.public(role)) for key in named[role]) for role in ONLINE_ROLES
        )
        if not in_force or not context.authority.newest_is_for(ca.intermediate_pem):
            return False
    for path in (*(key_path(newer, role) for role in ONLINE_ROLES), newer / authority.KEY_FILE):
        if path.exists():
            path.replace(folder / path.name)
    newer.rmdir()
    context.keys.refresh()
    context.authority.refresh()
    log.info("the rotation of the online keys is finished; the old keys are gone")
    return True
