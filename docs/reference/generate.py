"""The reference pages, generated from the code when the site is built, so that they cannot be out of date.

`docs/conf.py` calls `write_pages`; the pages are not in git.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edgewise_profiles.schema import Profile

DOCS: Final = Path(__file__).resolve().parents[1]


def profiles() -> str:
    """The catalogue of targets."""
    from edgewise_profiles import catalogue

    lines = [
        "# Profiles",
        "",
        "A profile says what a target is: processor, memory, engines, the forms that a model may take, and the budget "
        "that it must keep. `edgewise profiles show PROFILE` prints one whole.",
        "",
        "| profile | board | machine | default form | other forms | model at most | latency at most | memory at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in catalogue.names():
        p = catalogue.load(name)
        forms = [f"{t.format} {t.precision}" for t in p.targets]
        lines.append(
            f"| `{p.id}` | {p.title} | {p.machine} | {forms[0]} | {', '.join(forms[1:])} | "
            f"{p.budget.model_size_kib // 1024} MiB | {p.budget.latency_ms:g} ms | {_memory(p)} |"
        )
    for name in catalogue.names():
        p = catalogue.load(name)
        lines += ["", f"## {p.id}", "", f"{p.title}: {p.cpu.model}, {_system(p)}.", ""]
        if p.compatible:
            lines.append(f"- device tree: {', '.join(f'`{c}`' for c in p.compatible)}")
        lines.append(f"- engines: {', '.join(f'{e.name} from {e.min}, below {e.below}' for e in p.engines)}")
        if p.wheel_tags:
            lines.append(f"- wheels: {', '.join(p.wheel_tags)}")
        lines.append(f"- accuracy that conversion may cost: {p.budget.accuracy_drop:g} points")
    return "\n".join(lines) + "\n"


def _memory(p: Profile) -> str:
    return f"{p.mcu.ram_kib} KiB" if p.mcu is not None else f"{p.budget.memory_mib} MiB"


def _system(p: Profile) -> str:
    if p.mcu is not None:
        return f"{p.mcu.flash_kib} KiB of flash and {p.mcu.ram_kib} KiB of memory, the model a part of the firmware"
    return f"{p.cpu.cores} cores, from {p.memory_mib} MiB of memory, {p.os.distribution}, Python {p.os.python} or newer"


def cli() -> str:
    """Every command of the three programs."""
    import typer
    from edgewise_agent.__main__ import _parser as agent
    from edgewise_cli.app import app
    from edgewise_server.__main__ import _parser as server

    lines = [
        "# Command line",
        "",
        "`edgewise` is the operator's, `edgewise-server` the server's, `edgewise-agent` the device's.",
    ]
    root = typer.main.get_command(app)
    lines += ["", "## edgewise", "", "Exit statuses:", "", "| status | meaning |", "|---|---|"]
    from edgewise_cli.errors import MEANING

    lines += [f"| {int(status)} | {text} |" for status, text in MEANING.items()]
    for path, command in _commands("edgewise", root):
        lines += ["", f"### {path}", "", _plain(inspect.cleandoc(command.help or ""))]
        lines += _options(
            (list(p.opts) or [p.name], bool(p.required), getattr(p, "help", "") or "") for p in command.params
        )
    for name, parser in (("edgewise-server", server()), ("edgewise-agent", agent())):
        lines += ["", f"## {name}"]
        for path, sub, text in _parsers(name, parser):
            lines += ["", f"### {path}", "", _plain(text)]
            lines += _options(
                (list(a.option_strings) or [str(a.metavar or a.dest)], bool(a.required), a.help or "")
                for a in sub._actions
                if not isinstance(a, argparse._HelpAction)
            )
    return "\n".join(lines) + "\n"


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    for name, sub in getattr(command, "commands", {}).items():
        if hasattr(sub, "commands"):
            yield from _commands(f"{path} {name}", sub)
        else:
            yield f"{path} {name}", sub


def _parsers(path: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, sub in action.choices.items():
                if any(isinstance(a, argparse._SubParsersAction) for a in sub._actions):
                    yield from _parsers(f"{path} {name}", sub)
                else:
                    yield f"{path} {name}", sub, helps.get(name, "")


def _options(rows: Any) -> list[str]:
    kept = [(names, required, text) for names, required, text in rows if names != ["--help", "-h"]]
    if not kept:
        return []
    lines = ["", "| option | | |", "|---|---|---|"]
    for names, required, text in kept:
        said = ", ".join(f"`{n}`" for n in names)
        lines.append(f"| {said} | {'required' if required else ''} | {_plain(' '.join(str(text).split()))} |")
    return lines


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("%%", "%").replace("%(prog)s", "").replace("<", "&lt;")


def settings() -> str:
    """The settings of server and agent, with their units."""
    import edgewise_agent.config
    import edgewise_server.settings

    lines = [
        "# Settings",
        "",
        "Bounds are checked; an unknown key is refused. Times are in seconds unless the name says otherwise.",
        "",
        "## Server",
        "",
        "`server.toml` in the state folder, or `EDGEWISE_SERVER_NAME` in the environment (which wins).",
        "",
        *_fields(Path(edgewise_server.settings.__file__), ("Settings",)),
        "",
        "## Agent",
        "",
        "`agent.toml` in the state folder, or `EDGEWISE_AGENT_NAME`; a key of a table is `EDGEWISE_AGENT_TABLE__NAME`.",
        "",
        *_fields(Path(edgewise_agent.config.__file__), None),
    ]
    return "\n".join(lines) + "\n"


def _fields(module: Path, only: tuple[str, ...] | None) -> Iterator[str]:
    """Rows of the settings classes of a module: name, default and the docstring under it."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or (only and node.name not in only):
            continue
        if doc := ast.get_docstring(node):
            yield from ("", f"**{node.name}**: {_plain(' '.join(doc.split()))}", "")
        yield from ("| setting | default | |", "|---|---|---|")
        body = list(node.body)
        for item, after in zip(body, [*body[1:], None], strict=True):
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            text = ""
            if (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                text = " ".join(after.value.value.split())
            yield f"| `{item.target.id}` | {_default(item)} | {_plain(text)} |"


def _default(item: ast.AnnAssign) -> str:
    value = item.value
    if value is None:
        return "required"
    if isinstance(value, ast.Call):
        name = ast.unparse(value.func)
        if name.endswith("field"):
            return "see its table"
        value = value.args[0] if value.args else next(k.value for k in value.keywords if k.arg == "default")
    return f"`{ast.unparse(value)}`"


def rest() -> str:
    """The REST interface, from the OpenAPI document."""
    document = json.loads((DOCS / "openapi.json").read_text(encoding="utf-8"))
    lines = [
        "# REST interface",
        "",
        f"{document['info']['description']} The machine-readable document is [openapi.json](../openapi.json); every "
        "server serves its own at `/api/v1/openapi.json`.",
        "",
        "Send `Authorization: Bearer TOKEN`. An error is a problem document (RFC 9457) whose `code` is one of "
        "[Errors](../errors.md).",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            roles = operation.get("x-roles", [])
            who = f"role {' or '.join(roles)}" if roles else "no token"
            lines += ["", f"## {method.upper()} {path}".replace("{", "&#123;"), ""]
            lines += [f"{operation.get('summary', '')} ({who}).", ""]
            if text := operation.get("description"):
                lines += [_plain(inspect.cleandoc(text)), ""]
            parameters = operation.get("parameters", [])
            if parameters:
                lines += ["| parameter | in | type |", "|---|---|---|"]
                lines += [f"| `{p['name']}` | {p['in']} | {_type(p.get('schema', {}))} |" for p in parameters]
                lines += [""]
            lines += _bodies(operation)
    lines += ["", "## Schemas"]
    for name, schema in document["components"]["schemas"].items():
        lines += ["", f"### {name}", "", *_properties(schema)]
    return "\n".join(lines) + "\n"


def _bodies(operation: dict[str, Any]) -> list[str]:
    """What goes in and what comes out, each with a link to its schema."""
    asked = _content(operation.get("requestBody", {}))
    answers = {code: _content(said) for code, said in operation.get("responses", {}).items() if code.startswith("2")}
    parts = [f"Body: {asked}."] if asked else []
    parts += [f"Answer {code}{': ' + said if said else ''}." for code, said in answers.items()]
    return [" ".join(parts)] if parts else []


def _content(part: dict[str, Any]) -> str:
    found = []
    for kind, media in part.get("content", {}).items():
        schema = media.get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        if name:
            found.append(f"[{name}](#{name.lower()})")
        elif schema and schema != {"type": "object"}:
            found.append(_type(schema) if kind == "application/json" else f"`{kind}`")
        else:
            found.append(f"`{kind}`")
    return " or ".join(found)


def wire() -> str:
    """The MQTT topics and messages, from the AsyncAPI document."""
    document = json.loads((DOCS / "asyncapi.json").read_text(encoding="utf-8"))
    lines = [
        "# The wire",
        "",
        f"{document['info']['description']} The machine-readable document is [asyncapi.json](../asyncapi.json) "
        "(AsyncAPI 3).",
        "",
        "| topic | from | retained | message | |",
        "|---|---|---|---|---|",
    ]
    for name, operation in document["operations"].items():
        key = operation["channel"]["$ref"].rpartition("/")[2]
        message = document["components"]["messages"][key]
        payload = message.get("payload", {}).get("$ref", "").rpartition("/")[2]
        kind = f"[{payload}](#{payload.lower()})" if payload else message.get("contentType", "")
        retained = "yes" if operation["bindings"]["mqtt"]["retain"] else "no"
        address = document["channels"][key]["address"]
        lines.append(f"| `{address}` | {name.partition('Sends')[0]} | {retained} | {kind} | {operation['summary']} |")
    for name, schema in document["components"]["schemas"].items():
        lines += ["", f"## {name}", "", *_properties(schema)]
    return "\n".join(lines) + "\n"


def _properties(schema: dict[str, Any]) -> list[str]:
    lines = [_plain(" ".join(schema.get("description", "").split())), ""] if schema.get("description") else []
    if not schema.get("properties"):
        return [*lines, f"`{_type(schema)}`"]
    lines += ["| field | type | |", "|---|---|---|"]
    needed = set(schema.get("required", []))
    for name, part in schema["properties"].items():
        text = _plain(" ".join(str(part.get("description", "")).split()))
        lines.append(f"| `{name}`{'' if name in needed else ' (optional)'} | {_type(part)} | {text} |")
    return lines


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(s) for s in schema[key]))
    if "enum" in schema:
        return ", ".join(f"`{v}`" for v in schema["enum"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        kind = f"list of {_type(schema.get('items', {}))}"
    bounds = [
        f"{sign} {schema[key]}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
            ("minLength", "length ≥"),
            ("maxLength", "length ≤"),
            ("minItems", "items ≥"),
            ("maxItems", "items ≤"),
        )
        if key in schema
    ]
    return f"{kind} ({', '.join(bounds)})" if bounds else kind


PAGES: Final[dict[str, Callable[[], str]]] = {
    "profiles": profiles,
    "cli": cli,
    "settings": settings,
    "rest": rest,
    "wire": wire,
}


def write_pages() -> None:
    """Write every page that is not there as it should be; an unchanged one keeps its time."""
    for name, make in PAGES.items():
        place, text = DOCS / "reference" / f"{name}.md", make()
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            place.write_text(text, encoding="utf-8")
