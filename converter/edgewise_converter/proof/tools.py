"""What building and running sysroots needs of this machine: programs, rights, and Debian's sources.

Nothing names a mirror: Debian comes from where this machine's own apt takes it, or from where the user says.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from edgewise_converter.errors import ProofToolsError
from edgewise_converter.proof import process
from edgewise_converter.proof.recipe import Recipe

MIRROR: Final = "EDGEWISE_DEBIAN_MIRROR"
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_OS_RELEASE: Final = Path("/etc/os-release")
_PACKAGE_OF: Final = {
    "mmdebstrap": "mmdebstrap",
    "apt-get": "apt",
    "unshare": "util-linux",
    "prlimit": "util-linux",
    "setpriv": "util-linux",
    "chroot": "coreutils",
}
_APT_S: Final = 60.0
_MAX_LIST: Final = 1 << 20


class Source(NamedTuple):
    """One of apt's sources."""

    site: str
    release: str
    component: str


def program(name: str) -> str:
    """The path of a program.

    Raises:
        ProofToolsError: it is not installed; the message names the package.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        package = _PACKAGE_OF.get(name, "qemu-user-static" if name.startswith("qemu-") else name)
        raise ProofToolsError(f"{name} is not installed: sudo apt-get install {package}")
    return found


def check_builder(recipe: Recipe) -> None:
    """Raise `ProofToolsError`, with all that is missing, unless a sysroot can be built here."""
    missing, packages = [], []
    for name in ("mmdebstrap", "apt-get", "setpriv", "unshare", recipe.qemu):
        try:
            program(name)
        except ProofToolsError:
            missing.append(name)
            packages.append(_PACKAGE_OF.get(name, "qemu-user-static"))
    if missing:
        raise ProofToolsError(
            f"building a sysroot needs {', '.join(missing)}, which this machine lacks: "
            f"sudo apt-get install {' '.join(dict.fromkeys(packages))}"
        )
    if find_spec("pip") is None:
        raise ProofToolsError("building a sysroot needs pip, which this Python lacks: python -m ensurepip")
    if os.geteuid() != 0:
        raise ProofToolsError(
            "building a sysroot needs root, for the device files in it: run `edgewise prove --prepare` once as root, "
            "with EDGEWISE_CACHE set to a folder that you can read, too. Proving needs no root"
        )


def debian_sources(suite: str, mirror: str | None = None) -> str:
    """Lines of a sources.list for a suite.

    Args:
        suite: of Debian.
        mirror: a URL to take instead of this machine's own sources; else EDGEWISE_DEBIAN_MIRROR.

    Raises:
        ProofToolsError: this machine's apt knows no Debian.
    """
    option = f" [signed-by={_KEYRING}]" if _KEYRING.is_file() else ""
    mirror = mirror or os.environ.get(MIRROR)
    if mirror:
        if any(c.isspace() for c in mirror) or "://" not in mirror:
            raise ProofToolsError(f"{mirror[:100]!r} is no URL of a Debian mirror")
        return f"deb{option} {mirror} {suite} main\n"
    fields = _release_fields()
    codename = fields.get("VERSION_CODENAME", "") if fields.get("ID") == "debian" else ""
    found = choose(_apt_sources(), suite, codename)
    if not found:
        raise ProofToolsError(
            f"this machine's apt has no Debian {suite}: name a mirror of Debian with --mirror, or in {MIRROR}"
        )
    return "".join(f"deb{option} {site} {suite} main\n" for site in found)


def choose(sources: Sequence[Source], suite: str, codename: str) -> list[str]:
    """Sites of a suite. Pure. Its security updates are left out: a sysroot has no network, and is to stay the same.

    Args:
        sources: apt's own.
        suite: that is wanted.
        codename: of the Debian that this machine runs, whose sites serve the others, too; empty elsewhere.
    """
    for name in (suite, codename):
        found = {s.site for s in sources if name and s.component == "main" and s.release == name}
        if found:
            return sorted(found)
    return []


def _apt_sources() -> list[Source]:
    done = process.run(
        [
            program("apt-get"),
            "indextargets",
            "--format",
            "$(SITE) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ],
        limit_s=_APT_S,
        max_output=_MAX_LIST,
    )
    if done.status != 0:
        raise ProofToolsError(f"apt-get does not tell its sources: {done.log[-400:]}")
    rows = [line.split() for line in done.output.decode(errors="replace").splitlines()]
    return [Source(*row) for row in rows if len(row) == 3]


def _release_fields() -> dict[str, str]:
    try:
        text = _OS_RELEASE.read_text(errors="replace")
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value.strip('"') for name, _, value in pairs}
