"""The error tree of the operator's tool, and the exit status that each branch means.

Scripts may rely on the numbers; a number is never given another meaning.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar


class Exit(IntEnum):
    """Exit statuses of `edgewise`."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_AUTHORISED = 4
    TRUST = 5
    NOT_FOUND = 6
    TIMED_OUT = 7
    NOT_INSTALLED = 8
    FILES = 9
    INTERRUPTED = 130


MEANING: dict[Exit, str] = {
    Exit.OK: "done",
    Exit.REFUSED: "refused: a gate, a budget, a rollout or the server said no",
    Exit.USAGE: "the command or its configuration is wrong",
    Exit.UNREACHABLE: "the server cannot be reached, or failed",
    Exit.NOT_AUTHORISED: "the token is missing, unknown or not allowed to do this",
    Exit.TRUST: "metadata, a signature, a key or a digest does not verify",
    Exit.NOT_FOUND: "what was named does not exist",
    Exit.TIMED_OUT: "a bounded wait ran out",
    Exit.NOT_INSTALLED: "a part that this command needs is not installed",
    Exit.FILES: "a local file cannot be read or written",
    Exit.INTERRUPTED: "interrupted",
}


class CliError(Exception):
    """Base of every error that `edgewise` reports; `details` goes into `--json` output."""

    code: str = "cli"
    exit: ClassVar[Exit] = Exit.REFUSED

    def __init__(self, message: str, *, code: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.details = details or {}


class RefusedError(CliError):
    """A gate, a budget or the server said no."""

    code = "refused"


class UsageError(CliError):
    """The command line or the configuration is wrong."""

    code = "usage"
    exit = Exit.USAGE


class UnreachableError(CliError):
    """The server cannot be reached, answered nothing that can be read, or failed."""

    code = "unreachable"
    exit = Exit.UNREACHABLE


class NotEdgewiseError(UnreachableError):
    """Something answers at the server's address, and it is no Edgewise server."""

    code = "not-edgewise"


class NotAuthorisedError(CliError):
    """The server does not accept the token for this."""

    code = "not-authorised"
    exit = Exit.NOT_AUTHORISED


class TrustError(CliError):
    """Metadata, a signature, a key or a digest does not verify."""

    code = "trust"
    exit = Exit.TRUST


class MissingError(CliError):
    """What was named does not exist."""

    code = "not-found"
    exit = Exit.NOT_FOUND


class TimedOutError(CliError):
    """A bounded wait ran out."""

    code = "timed-out"
    exit = Exit.TIMED_OUT


class NotInstalledError(CliError):
    """A command needs a part of Edgewise that is not installed here."""

    code = "not-installed"
    exit = Exit.NOT_INSTALLED


class FilesError(CliError):
    """A local file cannot be read or written."""

    code = "files"
    exit = Exit.FILES
