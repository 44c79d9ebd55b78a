"""The agent as a Debian package: wheels unpacked by themselves, a service, a user. Built without root by dpkg-deb."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgewise_cli.agent_package import contents, tree
from edgewise_cli.agent_package.archive import MTIME
from edgewise_cli.agent_package.needs import DEBIAN, Needs
from edgewise_cli.agent_package.wheelhouse import Wheel
from edgewise_cli.errors import FilesError, NotInstalledError, RefusedError, TimedOutError

SITE: Final = "usr/lib/edgewise-agent/site"
SETTINGS: Final = "etc/default/edgewise-agent"
COMMANDS: Final = {"edgewise-agent": "edgewise_agent", "edgewise-agent-launcher": "edgewise_agent.launcher"}
TIMEOUT_S: Final = 1800


def file_name(needs: Needs, version: str) -> str:
    """As `edgewise-agent_0.1.0_arm64.deb`, with the profile, since two of one architecture differ."""
    return f"edgewise-agent_{version}_{DEBIAN[needs.profile.machine]}_{needs.profile.id}.deb"


def control(needs: Needs, version: str, installed_bytes: int) -> str:
    """The package's control file (Debian Policy, chapter 5). Pure."""
    major, minor = needs.python.split(".")
    depends = [
        f"python3 (>= {needs.python})",
        f"python3 (<< {major}.{int(minor) + 1})",
        f"libc6 (>= {_libc(needs)})",
        "libstdc++6",
        "passwd",
        *(f"{s.package} (>= {s.version})" for s in (needs.release.stand_ins if needs.release else ())),
    ]
    # NumPy's version in Debian has an epoch.
    depends = [d.replace("python3-numpy (>= ", "python3-numpy (>= 1:") for d in depends]
    return (
        f"Package: edgewise-agent\nVersion: {debian_version(version)}\n"
        f"Architecture: {DEBIAN[needs.profile.machine]}\n"
        "Maintainer: Edgewise <edgewise@localhost>\n"
        f"Installed-Size: {(installed_bytes + 1023) // 1024}\n"
        f"Depends: {', '.join(depends)}\nSection: net\nPriority: optional\n"
        f"Edgewise-Profile: {needs.profile.id}\nEdgewise-Engines: {' '.join(needs.engines)}\n"
        f"Description: Edgewise device agent for {needs.profile.title}\n"
        " It verifies, installs and serves machine-learning models that a fleet's server assigns.\n"
    )


def debian_version(version: str) -> str:
    """A version (PEP 440) such that pre-releases sort before their release."""
    for mark in ("a", "b", "rc", ".dev"):
        head, found, tail = version.partition(mark)
        if found and tail.isdigit():
            return f"{head}~{mark.lstrip('.')}{tail}"
    return version


def write(needs: Needs, version: str, wheels: Sequence[Wheel], work: Path, out: Path) -> None:
    """Build the package into `out`, a temporary name.

    Raises:
        NotInstalledError: dpkg-deb is missing.
        RefusedError, FilesError, TimedOutError: it cannot be built.
    """
    if shutil.which("dpkg-deb") is None:
        raise NotInstalledError("a .deb needs dpkg-deb: apt-get install dpkg, or take --format tar")
    root = work / "root"
    try:
        size = tree.unpack([w for w in wheels if w.distribution != "pip"], root / SITE)
        _put(root / SETTINGS, contents.text("deb-settings"))
        _put(root / "lib/systemd/system" / contents.UNIT, unit())
        for name, module in COMMANDS.items():
            _put(root / "usr/bin" / name, contents.filled("deb-command", {"SITE": SITE, "MODULE": module}), 0o755)
        _put(root / "usr/share/doc/edgewise-agent/copyright", contents.text("deb-copyright"))
        _put(root / "DEBIAN/control", control(needs, version, size))
        _put(root / "DEBIAN/conffiles", f"/{SETTINGS}\n")
        for script in ("postinst", "prerm", "postrm"):
            _put(root / "DEBIAN" / script, contents.filled(f"deb-{script}", {"SITE": SITE}), 0o755)
        for folder, _, names in os.walk(root):
            Path(folder).chmod(0o755)
            for path in (Path(folder), *(Path(folder) / name for name in names)):
                os.utime(path, (MTIME, MTIME))
    except OSError as error:
        raise FilesError(f"the package cannot be put together: {error.strerror or error}") from error
    _dpkg_deb(root, out)


def unit() -> str:
    """The service, with the paths that Debian's packages have."""
    lines: list[str] = []
    for line in contents.text(contents.UNIT).splitlines():
        if line.startswith("ExecStart="):
            lines.append(f"EnvironmentFile=-/{SETTINGS}")
            line = "ExecStart=/usr/bin/edgewise-agent-launcher run --state /var/lib/edgewise-agent"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _libc(needs: Needs) -> str:
    newest = max((tag.split("_")[2] for tag in needs.profile.wheel_tags if tag.startswith("manylinux_2_")), key=int)
    return f"2.{newest}"


def _put(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _dpkg_deb(root: Path, out: Path) -> None:
    try:
        done = subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z6", "--build", str(root), str(out)],
            env={**os.environ, "SOURCE_DATE_EPOCH": str(MTIME), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimedOutError(f"dpkg-deb took longer than {TIMEOUT_S // 60} minutes") from error
    if done.returncode:
        kind = FilesError if "No space left" in done.stderr else RefusedError
        raise kind(f"dpkg-deb failed: {done.stderr.strip()[-500:]}")
