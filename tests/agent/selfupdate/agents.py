"""Agents to update to: real wheels of agent and protocol with other versions, some broken on purpose."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewise_cli.agents import build_agent
from edgewise_protocol.manifest import Manifest

ROOT = Path(__file__).resolve().parents[3]
RUN = "edgewise_agent/commands/run.py"

CRASHES = "\n\ndef _act(given):\n    import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
HANGS = "\n\ndef _act(given):\n    import time\n    time.sleep(3600)\n"
NEVER_ONLINE = (
    "\n\nfrom edgewise_agent.session.shell import Session as _S\n"
    "_S.start = lambda self: None\n_S.stop = lambda self: None\n"
)
CANNOT_IMPORT = "\n\nimport edgewise_no_such_module\n"


def build_wheels(folder: Path, version: str) -> list[Path]:
    """Build both wheels from the workspace, as if `version` were released."""
    out = folder / version
    for name in ("protocol", "agent"):
        source = folder / f"source-{version}" / name
        shutil.copytree(ROOT / name, source, ignore=shutil.ignore_patterns("__pycache__"))
        project = source / "pyproject.toml"
        text = re.sub(r'^version = ".*"$', f'version = "{version}"', project.read_text(), count=1, flags=re.MULTILINE)
        text = re.sub(r'(edgewise-protocol(?:\[kll\])?)==[^"]+', rf"\1=={version}", text)
        project.write_text(text)
    sources = [str(folder / f"source-{version}" / name) for name in ("protocol", "agent")]
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check", "-q"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(out), *sources], check=True, timeout=120)
    return sorted(out.glob("*.whl"))


def renamed(wheels: list[Path], folder: Path, version: str, add: Mapping[str, str] | None = None) -> list[Path]:
    """The same wheels under another version, with code added to the end of some files."""
    folder = folder / version
    folder.mkdir(parents=True)
    return [_renamed(wheel, folder, version, dict(add or {})) for wheel in wheels]


def _renamed(wheel: Path, folder: Path, version: str, add: dict[str, str]) -> Path:
    name, old, rest = wheel.name.split("-", 2)
    home = folder / f"{name}-{version}-{rest}"
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(home, "w") as target:
        for member in source.infolist():
            data = source.read(member)
            if member.filename.endswith(".dist-info/METADATA"):
                data = data.replace(f"Version: {old}\n".encode(), f"Version: {version}\n".encode(), 1)
                data = data.replace(f"=={old}".encode(), f"=={version}".encode())
                more = add.get("METADATA", "").encode() if name == "edgewise_agent" else b""
                data = data.replace(b"\nRequires-Dist", more + b"\nRequires-Dist", 1)
            target.writestr(
                member.filename.replace(f"-{old}.dist-info", f"-{version}.dist-info"),
                data + add.get(member.filename, "").encode(),
            )
    return home


def bundle(wheels: list[Path], sign_as: Any, channel: str, number: int | None = None) -> tuple[Any, bytes, Manifest]:
    """An agent bundle as the operator's tool makes it, and what a role would sign for it."""
    manifest, data = build_agent(wheels, None, number)
    path = f"{channel}/{manifest.model}/{manifest.profile}/{manifest.version}.ewb"
    return sign_as(manifest, data, path), data, manifest


def bundle_bytes(manifest: Manifest, files: dict[str, bytes]) -> bytes:
    """A bundle of any manifest."""
    from edgewise_protocol.bundle import write_bundle

    out = io.BytesIO()
    write_bundle(out, manifest, files)
    return out.getvalue()
