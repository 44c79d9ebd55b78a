"""`edgewise-agent`: enrol, run, status.

Exit status: 0 done; 1 an error of the agent's; 2 wrong usage or settings; 3 not enrolled;
4 the enrolment was refused; 5 the endpoint cannot be opened; 6 the state is unusable;
75 the agent is to be started again, in the slot that is current now (see `edgewise_agent.launcher`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Final

from edgewise_protocol.errors import ProtocolError

from edgewise_agent.commands import bench, doctor, enrol, erase, run, status, tuf
from edgewise_agent.errors import (
    AgentError,
    ConfigError,
    EndpointError,
    EnrolError,
    IdentityError,
    NotEnrolledError,
    StateError,
    StorageError,
    code_of,
)
from edgewise_agent.words import words_for

_COMMANDS: Final[tuple[ModuleType, ...]] = (enrol, run, status, doctor, bench, erase, tuf)
"""One module a subcommand."""
_EXITS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (ConfigError, 2),
    (NotEnrolledError, 3),
    (EnrolError, 4),
    (IdentityError, 4),
    (EndpointError, 5),
    (StateError, 6),
    (StorageError, 6),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        exit_status: int = given.act(given)
    except (AgentError, ProtocolError) as error:
        print(f"edgewise-agent: {code_of(error)}: {error}", file=sys.stderr)
        if mend := words_for(code_of(error)).mend:
            print(f"  what to do: {mend}", file=sys.stderr)
        return next((code for kind, code in _EXITS if isinstance(error, kind)), 1)
    except KeyboardInterrupt:
        return 130
    return exit_status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgewise-agent", description="The Edgewise device agent.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for command in _COMMANDS:
        command.add_to(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
