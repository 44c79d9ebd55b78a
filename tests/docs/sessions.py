"""Runs pages as a reader would: block after block in one shell, in an empty directory.

The shell has a network and a set of processes of its own (`unshare`), so that a page's fixed
ports are free, and nothing outlives it. A command that a page puts in the background is waited
for until it listens, as a reader would wait for its first line. `systemctl` and the like are
stand-ins (tests/docs/shims): there is no systemd here, but units are read and their commands run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHIMS = Path(__file__).resolve().parent / "shims"
MARK = "\x1e"
SESSION_S = 900
QUICK = {
    "EDGEWISE_SERVER_TICK_S": "0.2",
    "EDGEWISE_AGENT_PROBATION__SECONDS": "1",
    "EDGEWISE_AGENT_RECONNECT_MAX_S": "1",
    "EDGEWISE_AGENT_RETRY_MAX_S": "1",
    "EDGEWISE_AGENT_MIN_FREE_MIB": "1",
    "EDGEWISE_AGENT_TELEMETRY_INTERVAL_S": "1",
    "OMP_NUM_THREADS": "1",
}
"""Waits of seconds where a reader has minutes; nothing else differs from the defaults."""

_PRELUDE = r"""
set -Eeuo pipefail
ip link set lo up
# What a page changes in /etc, /var and /opt is gone at the end. /root may hold the Python that services run.
mount -t tmpfs tmpfs "$EDGEWISE_OVERLAY"
for place in /etc /var /opt /root /usr/local/bin; do
  upper="$EDGEWISE_OVERLAY$place" work="$EDGEWISE_OVERLAY/work$place"
  mkdir -p "$upper" "$work" "$place"
  mount -t overlay overlay -o "lowerdir=$place,upperdir=$upper,workdir=$work" "$place"
done
chmod 0711 /root
_listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
_ready() { # _ready PID PORT...: until each port is listened on; fails if the process ends before
  local pid="$1" port n; shift
  for port in "$@"; do
    for ((n = 0; n < 600; n++)); do
      _listening "$port" && continue 2
      kill -0 "$pid" 2>/dev/null || { echo "ended before it listened on $port"; return 1; }
      sleep 0.1
    done
    echo "did not listen on $port within a minute"; return 1
  done
}
_mark() { printf '\x1e%s\n' "$1"; }
trap 'status=$?; echo "FAILED ($status): $BASH_COMMAND"; exit $status' ERR
"""


def ports_of(command: str) -> list[int]:
    """Ports that a background command listens on, as far as a reader would wait for them. Pure."""
    words = shlex.split(command, comments=True)
    while words and ("=" in words[0].split("/")[0] or words[0] in ("sudo", "exec", "nohup")):
        words = words[1:]

    def option(name: str, default: int) -> int:
        return int(words[words.index(name) + 1]) if name in words else default

    match words[:2]:
        case ["edgewise-server", "run"] | ["edgewise", "server"] if "bridge" not in words:
            return [option("--port", 8470)]
        case ["edgewise-agent", "run"]:
            return [option("--http-port", 8089)]
        case _:
            return []


def script_of(blocks: Sequence[Any]) -> str:
    """One bash script of all blocks."""
    lines = [_PRELUDE]
    for block in blocks:
        lines.append(f"_mark {shlex.quote('begin ' + block.name)}")
        if block.kind == "python":
            lines.append(f"python - <<'EDGEWISE_PAGE_END'\n{block.text}EDGEWISE_PAGE_END")
        else:
            lines += _with_waits(block.text)
        lines.append(f"_mark {shlex.quote('end ' + block.name)}")
    return "\n".join(lines) + "\n"


def _with_waits(text: str) -> list[str]:
    """A block's lines; after a command in the background, the wait for it."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = []
    for line in joined.splitlines():
        found.append(line)
        command = re.sub(r"\s+#.*$", "", line).rstrip()
        if command.endswith("&") and not command.endswith("&&"):
            command = command[:-1].strip()
            if command.startswith("mosquitto"):
                conf = shlex.split(command)[-1 if "-v" not in command else -2]
                found.append(f"_ready $! $(awk '$1 == \"listener\" {{print $2}}' {conf})")
            elif ports := ports_of(command):
                found.append(f"_ready $! {' '.join(map(str, ports))}")
    return found


def wheelhouse(folder: Path, root: Path, extra: str) -> dict[str, str]:
    """Wheels of an extra and of what builds it; returns the environment by which pip takes them, and no index."""
    for what in ([f"{root}[{extra}]"], ["hatchling", "editables"]):
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "-w", str(folder), *what],
            check=True,
            capture_output=True,
            timeout=SESSION_S,
        )
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


def run(blocks: Sequence[Any], folder: Path, root: Path, **env: str) -> dict[str, str]:
    """Run blocks in a directory that looks like a checkout.

    Returns:
        what each block printed, by its name.

    Raises:
        AssertionError: a command failed; the message ends with what was printed last.
    """
    for entry in root.iterdir():
        if entry.name not in (".git", ".venv", "site", ".hypothesis", ".pytest_cache", ".mypy_cache"):
            (folder / entry.name).symlink_to(entry)
    (folder / ".venv").symlink_to(sys.prefix)
    script = folder / "page.sh"
    script.write_text(script_of(blocks))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("EDGEWISE_", "PYTEST_", "COLUMNS"))}
    home, overlay = folder / "home", folder / "overlay"
    home.mkdir()
    overlay.mkdir()
    path = f"{SHIMS}:{folder}/.venv/bin:/usr/sbin:{inherited.get('PATH', '')}"
    own = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        own += ["--user", "--map-root-user"]
    done = subprocess.run(
        [*own, "bash", str(script)],
        cwd=folder,
        env={
            **inherited,
            **QUICK,
            **env,
            "HOME": str(home),
            "PATH": path,
            "PYTHONUNBUFFERED": "1",
            "EDGEWISE_OVERLAY": str(overlay),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SESSION_S,
    )
    assert done.returncode == 0, f"a page's command failed; the end of the output:\n{done.stdout[-6000:]}"
    printed: dict[str, str] = {}
    for name, body in re.findall(rf"{MARK}begin ([^\n]+)\n(.*?){MARK}end \1\n", done.stdout, re.DOTALL):
        printed[name] = body
    return printed
