"""What every command shares: `--json`, the connection's options, and the console.

`command` adds the shared options to a function's own, so that none is forgotten. The
function gets a `Shell` first, returns the document that `--json` prints, and says to people
what it has to say through the shell.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from edgewise_cli.client import Client
from edgewise_cli.config import Connection, resolve
from edgewise_cli.errors import CliError, Exit, UsageError

Json = dict[str, Any]

LOGIN = "login"
"""The command that makes a profile, so that the one it names need not exist."""
_WIDE = 200
"""Columns of a table that goes to no terminal."""

_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but the end of a line and the tabulator, those that turn the direction of writing, surrogates."""

_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, for scripts.")]
_SERVER = Annotated[
    str | None,
    typer.Option("--server", help="The server's URL; else EDGEWISE_SERVER, else the profile's.", show_default=False),
]
_TOKEN = Annotated[
    str | None,
    typer.Option("--token", help="The bearer token; else EDGEWISE_TOKEN, else the profile's.", show_default=False),
]
_CA_FILE = Annotated[
    str | None,
    typer.Option(
        "--ca-file",
        help="PEM of the authority that issued the server's certificate, e.g. the fleet's; else EDGEWISE_CA_FILE.",
        show_default=False,
    ),
]
_PROFILE = Annotated[
    str | None,
    typer.Option("--login", help="A profile that `edgewise login` saved; else EDGEWISE_PROFILE.", show_default=False),
]


@dataclass
class Shell:
    """One run of one command."""

    as_json: bool
    connection: Connection
    login: str | None = None
    out: Console = field(default_factory=lambda: _console(sys.stdout.isatty(), os.environ))
    _client: Client | None = None

    @property
    def client(self) -> Client:
        """The server's client.

        Raises:
            UsageError: no server is configured.
        """
        if self._client is None:
            if not self.connection.server:
                raise UsageError("no server: give --server, set EDGEWISE_SERVER, or run `edgewise login`")
            self._client = Client(self.connection)
        return self._client

    def say(self, text: str) -> None:
        """A line for people; silent with `--json`."""
        if not self.as_json:
            self.out.print(plain(text), highlight=False, markup=False, soft_wrap=True)

    def document(self, document: Json) -> None:
        """A document for people, as JSON; silent with `--json`, which prints what a command returns."""
        if not self.as_json:
            text = json.dumps(document, ensure_ascii=False, default=str)
            self.out.print_json(text, ensure_ascii=plain(text) != text)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table for people; silent with `--json`.

        What names a row stands in the first column, and is never broken: people copy it. Cells
        may come from a device or a server, and are no markup.
        """
        if self.as_json:
            return
        if title:
            # Not the table's own title, which would be wrapped to the table's width.
            self.out.print(plain(title), style="bold", highlight=False, markup=False, soft_wrap=True)
        table = Table()
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=column is columns[0])
        for row in rows:
            table.add_row(*(Text(plain(cell)) for cell in row))
        self.out.print(table)

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[str, float | None], None]]:
        """A progress line on standard error; call it with (text, fraction in [0, 1] or None)."""
        console = Console(stderr=True)
        if self.as_json or not console.is_terminal:
            yield lambda _text, _fraction: None
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(text, total=None)

            def update(text: str, fraction: float | None) -> None:
                bar.update(task, description=plain(text), total=None if fraction is None else 1.0, completed=fraction)

            yield update

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def plain(text: str) -> str:
    """Text with what a terminal would act on written out: names in it may come from a model file or a device."""
    return _ACTING.sub(lambda found: f"\\x{ord(found[0]):02x}" if found[0] < "\x80" else ascii(found[0])[1:-1], text)


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., Json]], Callable[..., None]]:
    """Register `function(shell, ...) -> document` as a command with the shared options."""

    def register(function: Callable[..., Json]) -> Callable[..., None]:
        @wraps(function)
        def run(**values: Any) -> None:
            as_json = values.pop("as_json")
            login = values.pop("login")
            new = name == LOGIN
            given = {name: values.pop(name) for name in ("server", "token", "ca_file")}
            connection = resolve(given["server"], given["token"], login, ca_file=given["ca_file"], may_be_new=new)
            shell = Shell(as_json=as_json, connection=connection, login=login)
            try:
                document = function(shell, **values)
            finally:
                shell.close()
            if as_json:
                print(json.dumps(document, indent=1, sort_keys=True, default=str))

        hints = get_type_hints(function, include_extras=True)
        own = list(inspect.signature(function).parameters.values())[1:]
        shared: list[tuple[str, Any, Any]] = [
            ("as_json", _JSON, False),
            ("server", _SERVER, None),
            ("token", _TOKEN, None),
            ("ca_file", _CA_FILE, None),
            ("login", _PROFILE, None),
        ]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [p.replace(annotation=hints[p.name], kind=kind) for p in own]
        parameters += [inspect.Parameter(n, kind, default=d, annotation=a) for n, a, d in shared]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        del run.__wrapped__
        app.command(name, help=inspect.getdoc(function))(run)
        return run

    return register


def group(app: typer.Typer, name: str, help_text: str) -> typer.Typer:
    """Add a group of commands."""
    made = typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode="markdown")
    app.add_typer(made, name=name)
    return made


def _console(terminal: bool, environ: Mapping[str, str]) -> Console:
    """A console as wide as the terminal, or as COLUMNS says; a file or a pipe has no width to fit into."""
    return Console() if terminal or environ.get("COLUMNS") else Console(width=_WIDE)


def report(error: CliError, *, as_json: bool) -> Exit:
    """Tell an error: JSON on standard output, or a line on standard error."""
    if as_json:
        document = {"error": {"code": error.code, "message": str(error), **error.details}}
        print(json.dumps(document, indent=1, sort_keys=True, default=str))
    else:
        told = Text.assemble(("edgewise:", "red bold"), " ", plain(str(error)))
        Console(stderr=True).print(told, highlight=False, soft_wrap=True)
    sys.stdout.flush()
    return error.exit
