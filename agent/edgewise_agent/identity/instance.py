"""A fingerprint of this machine, by which two copies of one identity can be told apart.

Only a hash leaves the device, salted with the device's id: it says "the same machine as before" or
"another one", and nothing about the machine. What a copied card takes along (`machine-id`)
counts less than what it leaves behind: serial numbers and network addresses.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Final

_SALT: Final = b"edgewise instance fingerprint v1"
_FILES: Final = (
    "proc/device-tree/serial-number",
    "sys/class/dmi/id/product_uuid",
    "sys/class/dmi/id/product_serial",
    "sys/class/dmi/id/board_serial",
    "etc/machine-id",
)
_NETWORK: Final = "sys/class/net"
_MAX_INTERFACES: Final = 64
_MAX_READ: Final = 4096
_HEX: Final = 32


def fingerprint(device_id: str, root: Path = Path("/")) -> str:
    """32 hexadecimal digits for this machine and this device id; files that cannot be read count as empty."""
    facts = [_read(root / name) for name in _FILES]
    facts += [b"%s=%s" % (name.encode(), address) for name, address in _addresses(root)]
    digest = hashlib.sha256(_SALT)
    for part in (device_id.encode(), *facts):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.hexdigest()[:_HEX]


def new_run() -> str:
    """A random id for this start of the agent."""
    return secrets.token_hex(8)


def _addresses(root: Path) -> list[tuple[str, bytes]]:
    """The permanent hardware addresses of physical interfaces; virtual ones change from boot to boot."""
    try:
        interfaces = sorted((root / _NETWORK).iterdir())[:_MAX_INTERFACES]
    except OSError:
        return []
    return [(path.name, _read(path / "address")) for path in interfaces if (path / "device").exists()]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_READ).strip(b"\0\n ")
    except OSError:
        return b""
