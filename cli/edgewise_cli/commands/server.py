"""`edgewise login`, `edgewise status` and `edgewise models`: the server as a whole."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgewise_cli.client import segment
from edgewise_cli.config import DEFAULT_PROFILE, config_path, save_profile
from edgewise_cli.errors import NotEdgewiseError, UsageError
from edgewise_cli.shell import Json, Shell, command

tokens = typer.Typer(help="Bearer tokens of people and workers (admin).", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands that belong to no group."""
    command(app, "login")(login)
    command(app, "status")(status)
    command(app, "models")(models)
    command(app, "stage")(stage)


def login(shell: Shell) -> Json:
    """Check --server and --token, and save them as a profile (--login NAME, else `default`).

    The file is of mode 0600.
    """
    if not shell.connection.token:
        raise UsageError("no token: give --token or set EDGEWISE_TOKEN")
    found = _status(shell)
    name = shell.login or DEFAULT_PROFILE
    save_profile(config_path(), name, shell.connection)
    shell.say(f"saved as profile {name} in {config_path()}: server {shell.client.server}, version {found['version']}")
    return {"profile": name, "server": shell.client.server, "version": found["version"]}


def _status(shell: Shell) -> Json:
    found = shell.client.get("/status")
    if not isinstance(found, dict) or "version" not in found or "trust" not in found:
        raise NotEdgewiseError(f"{shell.client.server} answers, but is no Edgewise server: give the URL of one")
    return found


def status(shell: Shell) -> Json:
    """Show the server: version, trust, counts, broker."""
    found = _status(shell)
    counts: dict[str, Any] = found.get("counts", {})
    trust: dict[str, Any] = found.get("trust", {})
    broker: dict[str, Any] = found.get("broker", {})
    rows = [["server", shell.client.server], ["version", str(found.get("version"))]]
    rows.append(["broker", f"{broker.get('host')}:{broker.get('port')}{' TLS' if broker.get('tls') else ''}"])
    rows += [[name, str(value)] for name, value in counts.items()]
    if trust.get("installed"):
        rows += [[f"role {r}", f"version {v['version']}, until {v['expires']}"] for r, v in trust["roles"].items()]
    else:
        rows.append(["trust", "not installed: `edgewise trust install KEYS`"])
    shell.table("", ["what", "value"], rows)
    return found


def models(
    shell: Shell,
    model: Annotated[str | None, typer.Argument(help="Show this model's versions.", show_default=False)] = None,
    version: Annotated[int | None, typer.Argument(help="Show this version's bundles.", show_default=False)] = None,
) -> Json:
    """List models, a model's versions, or a version's bundles."""
    if model is None:
        items = shell.client.get("/models")["items"]
        rows = [
            [m["model"], str(m["latest"]), str(m.get("production") or "-"), ", ".join(m["channels"])] for m in items
        ]
        shell.table("Models", ["model", "latest", "production", "channels"], rows)
        return {"models": items}
    path = f"/models/{segment(model)}"
    if version is None:
        found: Json = shell.client.get(path)
        shell.table(
            model,
            ["version", "stage", "channels", "bundles"],
            [[str(v["version"]), v["stage"], ", ".join(v["channels"]), str(v["bundles"])] for v in found["versions"]],
        )
        return found
    found = shell.client.get(f"{path}/versions/{version}")
    shell.table(
        f"{model} {version}: {found['stage']}",
        ["profile", "engine", "precision", "bytes", "accuracy", "signed by"],
        [
            [
                b["profile"],
                b["engine"],
                b.get("precision") or "",
                str(b["length"]),
                f"{b['metrics']['accuracy']:.4f}" if "accuracy" in (b.get("metrics") or {}) else "-",
                b["role"],
            ]
            for b in found["bundles"]
        ],
    )
    return found


def stage(
    shell: Shell,
    model: Annotated[str, typer.Argument(help="The model's name.", show_default=False)],
    version: Annotated[int, typer.Argument(help="The version.", min=1, show_default=False)],
    to: Annotated[str, typer.Argument(help="candidate, production or archived.", show_default=False)],
) -> Json:
    """Move a version to a stage."""
    found: Json = shell.client.put(f"/models/{segment(model)}/versions/{version}/stage", {"stage": to})
    shell.say(f"{model} {version}: {found['stage']}")
    return found


@command(tokens, "create")
def create_token(
    shell: Shell,
    name: Annotated[str, typer.Argument(help="Whose it is.", show_default=False)],
    role: Annotated[str, typer.Option(help="admin, operator, viewer or worker.")] = "operator",
) -> Json:
    """Make a token. It is shown once."""
    made: Json = shell.client.post("/tokens", {"name": name, "role": role})
    shell.say(made["token"])
    return made


@command(tokens, "list")
def list_tokens(shell: Shell) -> Json:
    """List tokens, without their secrets."""
    items = shell.client.get("/tokens")["items"]
    shell.table("Tokens", ["id", "name", "role"], [[str(t["id"]), t["name"], t["role"]] for t in items])
    return {"tokens": items}


@command(tokens, "revoke")
def revoke_token(shell: Shell, token_id: Annotated[str, typer.Argument(help="Its id.", show_default=False)]) -> Json:
    """Revoke a token."""
    shell.client.delete(f"/tokens/{segment(token_id)}")
    shell.say(f"token {token_id} is revoked")
    return {"id": token_id, "revoked": True}
