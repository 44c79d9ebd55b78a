"""`edgewise-server backup` and `restore`, with a line of progress every few seconds."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edgewise_server.backup.create import create_backup
from edgewise_server.backup.restore import restore_backup
from edgewise_server.settings import SETTINGS_FILE, Settings

EVERY_S: Final = 2.0


class Lines:
    """Prints progress to the error output, at most one line in `EVERY_S` seconds."""

    def __init__(self, verb: str) -> None:
        self._verb, self._next = verb, time.monotonic() + EVERY_S

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY_S
            print(f"{self._verb}: {text}", file=sys.stderr, flush=True)


def backup(settings: Settings, file: Path, *, with_keys: bool) -> int:
    """Make a backup and say what it holds."""
    made = create_backup(settings, file.absolute(), with_keys=with_keys, progress=Lines("backup"))
    rows = sum(table.rows for table in made.manifest.tables)
    blobs = sum(entry.name.startswith("blobs/") for entry in made.manifest.files)
    print(f"backup         {file}")
    print(f"holds          {rows} rows, {blobs} blobs, {'keys' if with_keys else 'no keys'}")
    print(f"digest         {made.manifest_sha256}   (give it to `restore --digest`)")
    if with_keys:
        print("It holds private keys: keep it where only you can read it.")
    if made.left_out:
        print(f"{made.left_out} update(s) of rounds that ended meanwhile are left out.")
    return 0


def restore(state: Path, file: Path, digest: str) -> int:
    """Restore a backup and say what comes next."""
    done = restore_backup(state, file, manifest_sha256=digest, progress=Lines("restore"))
    manifest = done.manifest
    at = datetime.fromtimestamp(manifest.created_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    print(f"restored       {file}, made at {at} by server {manifest.server_version}")
    print(f"signed anew    {done.assignments} assignments, snapshot and timestamp; versions leapt ahead")
    if done.kept_settings:
        print(f"settings       the {SETTINGS_FILE} that was in {state} stands; the archive's is left out")
    if not manifest.with_keys:
        print("The archive holds no keys: run `edgewise-server init`, and rotate the new online keys in by a ceremony.")
    print("What happened since is not in it: revoke, enrol and publish that again. Then start the server.")
    return 0
