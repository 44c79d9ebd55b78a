"""`edgewise`: runs the command line, and turns errors into exit statuses."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_INTERRUPTED = 130
"""`edgewise_cli.errors.Exit.INTERRUPTED`, known before anything is imported."""


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        its exit status, see `edgewise_cli.errors.Exit`.
    """
    try:
        from edgewise_cli.app import app  # half a second, in which the user may end it, too
        from edgewise_cli.errors import CliError, Exit
        from edgewise_cli.shell import report
    except KeyboardInterrupt:
        return _INTERRUPTED
    try:
        status = app(list(arguments), standalone_mode=True)
    except CliError as error:
        return int(report(error, as_json="--json" in arguments))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(Exit.OK if leaving.code is None else Exit.USAGE)
    return int(status or 0)


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
