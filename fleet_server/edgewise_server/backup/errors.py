"""What can go wrong with a backup or a restore."""

from __future__ import annotations

from edgewise_server.errors import ServerError


class BackupError(ServerError):
    """A backup could not be made; nothing was left behind."""

    code = "backup"


class ArchiveError(BackupError):
    """An archive is damaged, was changed, or is none of ours; nothing of it was used."""

    code = "backup-archive"


class NewerArchiveError(ArchiveError):
    """An archive was made by a newer server."""

    code = "backup-newer"


class RestoreError(BackupError):
    """A restore could not be done; the message says what is left to do."""

    code = "restore"


class NotEmptyError(RestoreError):
    """There is something where the restore would write."""

    code = "restore-not-empty"
