"""Wheels of Edgewise's own distributions: from the checkout that is installed, or put together again from its files."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from edgewise_cli.agent_package.needs import OWN
from edgewise_cli.agent_package.pip import pip
from edgewise_cli.errors import FilesError, NotInstalledError

_DATE: Final = (2020, 1, 1, 0, 0, 0)
_LEFT_OUT: Final = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def make(folder: Path, given: Path | None, tell: Callable[[str], None]) -> None:
    """Put a wheel of each into `folder`, but for those that `given` holds.

    Raises:
        NotInstalledError: one is neither given nor installed here.
        RefusedError: the checkout cannot be built.
        FilesError: an installed file cannot be read.
    """
    folder.mkdir(parents=True)
    for name in OWN:
        if given is not None and list(given.glob(f"{name.replace('-', '_')}-*.whl")):
            continue
        tell(f"making the wheel of {name}")
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise NotInstalledError(
                f"{name} is not installed here: give its wheel with --wheels, or pip install 'edgewise[agent]'"
            ) from error
        checkout = _checkout(found)
        if checkout is None:
            _pack(found, folder)
        else:
            # With hatchling at hand nothing is downloaded.
            alone = ["--no-build-isolation", "--no-index"] if find_spec("hatchling") else []
            pip(["wheel", "--no-deps", *alone, f"--wheel-dir={folder}", str(checkout)], f"building {name}")


def _checkout(found: metadata.Distribution) -> Path | None:
    """The folder that an editable installation is of."""
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(origin["url"]).path))


def _pack(found: metadata.Distribution, folder: Path) -> None:
    """An installed distribution of Python files alone as a wheel again, the same bytes each time."""
    name = found.metadata["Name"].replace("-", "_")
    contents: dict[str, bytes] = {}
    for file in sorted(found.files or (), key=str):
        wanted = ".." not in file.parts and "__pycache__" not in file.parts and file.name not in _LEFT_OUT
        if wanted:
            try:
                contents[str(file)] = Path(str(file.locate())).read_bytes()
            except OSError as error:
                raise FilesError(f"{file} of {name} cannot be read: {error.strerror}") from error
    info = f"{name}-{found.version}.dist-info"
    rows = [f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in contents.items()]
    contents[f"{info}/RECORD"] = ("".join(rows) + f"{info}/RECORD,,\n").encode()
    with zipfile.ZipFile(folder / f"{name}-{found.version}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in contents.items():
            entry = zipfile.ZipInfo(path, _DATE)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
