"""What was made and measured before, by content: artifacts, scores, latencies, whole results.

A key is a digest over all that an entry depends on. An entry is a file with its own digest in
front: one that is damaged is removed, and made again. The least recently used go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

VARIABLE: Final = "EDGEWISE_CACHE"
ROOM: Final = "converter"
MAX_BYTES: Final = 2 << 30
MAX_ENTRY_BYTES: Final = 512 << 20
_DIGEST: Final = 32
_LIBRARIES: Final = (
    "ai-edge-litert",
    "ai-edge-quantizer",
    "iree-base-compiler",
    "litert-torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxslim",
    "optuna",
    "torch",
)


def default_root() -> Path:
    """`$EDGEWISE_CACHE/converter`, else `~/.cache/edgewise/converter` (XDG_CACHE_HOME counts)."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named) / ROOM
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "edgewise" / ROOM


class Cache:
    """A bounded folder of entries. It never fails a conversion: what cannot be kept is made again.

    Args:
        root: made when it is first written to; None keeps nothing.
        max_bytes: above which the least recently used entries go.
    """

    def __init__(self, root: Path | None, max_bytes: int = MAX_BYTES) -> None:
        self._root, self._max_bytes = root, max_bytes

    def get(self, kind: str, key: str) -> bytes | None:
        """An entry's bytes; None where there is none, or a damaged one, which is removed."""
        if self._root is None:
            return None
        path = self._path(kind, key)
        try:
            with path.open("rb") as source:
                data = source.read(MAX_ENTRY_BYTES + _DIGEST + 1)
        except OSError:
            return None
        digest, payload = data[:_DIGEST], data[_DIGEST:]
        if hashlib.sha256(payload).digest() != digest:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return payload

    def put(self, kind: str, key: str, payload: bytes) -> None:
        """Keep an entry, whole or not at all."""
        if self._root is None or len(payload) > min(MAX_ENTRY_BYTES, self._max_bytes):
            return
        path = self._path(kind, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
        except OSError:
            return
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as out:
                out.write(hashlib.sha256(payload).digest())
                out.write(payload)
            temporary.replace(path)
            self._shrink()
        except OSError:
            return
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, kind: str, key: str) -> Path:
        if self._root is None:
            raise ValueError("this cache keeps nothing")
        return self._root / kind / key[:2] / key

    def _shrink(self) -> None:
        """Remove the least recently used entries above the bound."""
        if self._root is None:
            return
        found = []
        for path in self._root.glob("*/*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found, key=lambda entry: entry[0]):
            if total <= self._max_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size


def key_of(*parts: str | bytes) -> str:
    """A digest over parts, each told apart from the next; this converter and its libraries always count."""
    digest = hashlib.sha256(made_by().encode())
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def made_by() -> str:
    """This converter, by its own files, and the versions of the libraries that it works with."""
    own = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        own.update(str(path.relative_to(folder)).encode())
        own.update(path.read_bytes())
    return "\n".join([own.hexdigest(), *(f"{name} {number}" for name, number in library_versions().items())])


def library_versions() -> dict[str, str]:
    """Versions of the libraries that take part in conversions, of those that are installed."""
    found = {}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
