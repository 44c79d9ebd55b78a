"""What is in an archive beside the wheels, as bytes. Pure, but for the texts that this package carries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Final

from edgewise_cli.agent_package.needs import DEBIAN, Needs
from edgewise_cli.agent_package.wheelhouse import Wheel

UNIT: Final = "edgewise-agent.service"
MANIFEST_FORMAT: Final = 1


def text(name: str) -> str:
    """A text of `data/`."""
    return (files("edgewise_cli.agent_package") / "data" / name).read_text(encoding="utf-8")


def filled(name: str, values: Mapping[str, str]) -> str:
    """A text of `data/` with its `@NAMES@` filled in."""
    found = text(name)
    for key, value in values.items():
        found = found.replace(f"@{key}@", value)
    return found


def small_files(needs: Needs, version: str, wheels: Sequence[Wheel], digests: Mapping[str, str]) -> dict[str, bytes]:
    """The archive's own files by name: installer, unit, requirements, manifest, checksums.

    Args:
        version: of the agent.
        wheels: in the archive.
        digests: SHA-256 of every file that is not made here, by its name in the archive.
    """
    made = {
        "README.txt": _readme(needs, version),
        "install.sh": filled("install.sh", _values(needs, version)),
        UNIT: text(UNIT),
        "requirements.txt": "".join(
            f"{w.distribution}=={w.version} --hash=sha256:{digests[f'wheels/{w.path.name}']}\n"
            for w in wheels
            if w.distribution != "pip"
        ),
        "manifest.json": json.dumps(_manifest(needs, version, wheels, digests), indent=1, sort_keys=True) + "\n",
    }
    return {name: content.encode() for name, content in made.items()}


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def checksums(digests: Mapping[str, str]) -> bytes:
    """`SHA256SUMS`, as sha256sum(1) reads it."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


def _values(needs: Needs, version: str) -> dict[str, str]:
    release = needs.release
    return {
        "PROFILE": needs.profile.id,
        "VERSION": version,
        "MACHINE": needs.profile.machine,
        "BITS": str(needs.bits),
        "PYTHON": needs.python,
        "MODULES": " ".join(s.module for s in release.stand_ins) if release else "",
        "SYSTEM_PACKAGES": " ".join(s.package for s in release.stand_ins) if release else "",
        "VENV_OPTIONS": "--system-site-packages" if release else "",
    }


def _manifest(needs: Needs, version: str, wheels: Sequence[Wheel], digests: Mapping[str, str]) -> dict[str, object]:
    release = needs.release
    return {
        "format": MANIFEST_FORMAT,
        "profile": needs.profile.id,
        "profile_sha256": needs.profile.sha256,
        "agent_version": version,
        "python": needs.python,
        "machine": needs.profile.machine,
        "architecture": DEBIAN[needs.profile.machine],
        "engines": list(needs.engines),
        "wheels": [
            {
                "name": w.distribution,
                "version": w.version,
                "file": w.path.name,
                "sha256": digests[f"wheels/{w.path.name}"],
            }
            for w in wheels
        ],
        "from_debian": [{"name": s.distribution, "version": s.version, "package": s.package} for s in release.stand_ins]
        if release
        else [],
    }


def _readme(needs: Needs, version: str) -> str:
    return (
        f"Edgewise agent {version} for {needs.profile.title} ({needs.profile.id}), Python {needs.python}.\n\n"
        "    sudo sh install.sh\n    sudo -u edgewise-agent edgewise-agent enrol FILE --state /var/lib/edgewise-agent\n"
        "    sudo systemctl start edgewise-agent\n\n"
        "No network is needed to install. `sh install.sh --help` says what can be chosen; `--uninstall` removes it.\n"
    )
