"""python-tuf's updater, whose files survive a power cut.

python-tuf 7 renames a file over the accepted one before its bytes are on the disk, and removes
the link to the root before it makes the new one: a cut in between loses what may never go back.
Both are private methods of its `Updater`; tests/faults notices when they are no longer called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuf.ngclient import Updater

from edgewise_agent.durable import TEMPORARY, sync_dir, write_atomic


class DurableUpdater(Updater):
    """Raises `StorageError` where a file cannot be written."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._begun = False
        super().__init__(*arguments, **named)
        self._begun = True

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        # python-tuf writes the first root at every start: flash need not be worn for that.
        if not path.exists() or path.read_bytes() != data:
            write_atomic(path, data)

    def _update_root_symlink(self) -> None:
        link = Path(self._dir, "root.json")
        if not self._begun and link.exists():
            return  # It names the newest root of the last refresh; the bootstrap's is older, and its chain comes next.
        current = f"root_history/{self._trusted_set.root.version}.root.json"
        if link.is_symlink() and str(link.readlink()) == current:
            return
        new = link.with_name(f".{link.name}{TEMPORARY}")
        new.unlink(missing_ok=True)
        new.symlink_to(current)
        new.replace(link)
        sync_dir(link.parent)
