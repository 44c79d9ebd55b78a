"""The zip file around a program: its members by name, and a fresh one of those that were looked through.

Two readers of one zip file may see other files in it: which directory counts, where a member starts, what it is
called. Torch's reader is not Python's, so it never gets the file that was looked at, only a new one.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import Final

from edgewise_converter.program_file.harm import DamageError, HarmError

MODEL: Final = "models/model.json"
WEIGHTS: Final = "data/weights/"
WEIGHTS_LIST: Final = "data/weights/model_weights_config.json"
CONSTANTS: Final = "data/constants/"
CONSTANTS_LIST: Final = "data/constants/model_constants_config.json"
SAMPLES: Final = "data/sample_inputs/model.pt"
_NEEDED: Final = (MODEL, WEIGHTS_LIST, CONSTANTS_LIST, SAMPLES, "archive_format", "archive_version")
_ALSO: Final = ("byteorder", ".data/version", "version", ".data/serialization_id")
_TENSOR: Final = re.compile(r"data/(weights/weight|constants/tensor)_[0-9]{1,6}")
_NOTES: Final = "extra/"
"""Texts that the maker added; torch reads them, nothing here needs them."""
_NATIVE: Final = re.compile(r".*\.(so|dll|dylib|o|a|cubin|ptx|cpp)|data/aotinductor/.*|.*/delegate/.*")
_PICKLED: Final = re.compile(r".*\.(pt|pth|pkl|pickle)|data/(constants|weights)/(opaque|custom)_obj_.*")

_MOST_MEMBERS: Final = 100_000
_MOST_DIRECTORY_BYTES: Final = 32 << 20
_END: Final = struct.Struct("<4s4H2IH")
_LOCATOR: Final = struct.Struct("<4sIQI")
_END64: Final = struct.Struct("<4sQ2H2I4Q")


def members_of(data: bytes) -> dict[str, bytes]:
    """Members of a program's archive, by their names without the root folder; the maker's notes are left out.

    Raises:
        DamageError: it is not a zip file as torch writes it.
        HarmError: it holds a member that is none of a program's.
    """
    found: dict[str, bytes] = {}
    for path, content in stored_in(data).items():
        name = path.partition("/")[2]
        if name.startswith(_NOTES):
            continue
        if _NATIVE.fullmatch(name):
            raise HarmError(f"compiled code ({path})")
        if name not in (*_NEEDED, *_ALSO) and not _TENSOR.fullmatch(name):
            raise HarmError(f"the pickled object {path!r}" if _PICKLED.fullmatch(name) else f"the file {path[:80]!r}")
        found[name] = content
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        raise DamageError(f"it holds no {missing[0]}")
    return found


def stored_in(data: bytes) -> dict[str, bytes]:
    """Members of a zip file that torch wrote, by their whole names: stored, of one root folder, in one directory.

    Raises:
        DamageError: it is not such a file.
    """
    _check_directory(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len({m.filename.lower() for m in members}) != len(members):
                raise DamageError("it holds two files of one name")
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
                raise DamageError("it holds compressed files; torch stores them plain")
            if sum(m.file_size for m in members) > len(data):
                raise DamageError("its files overlap")
            if len({m.filename.partition("/")[0] for m in members}) > 1:
                raise DamageError("it holds more than one folder")
            return {m.filename: archive.read(m) for m in members}
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DamageError(str(error)) from error


def packed(members: Mapping[str, bytes]) -> io.BytesIO:
    """A new zip file of these members, in their order."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    out.seek(0)
    return out


def _check_directory(data: bytes) -> None:
    """Hold the end of the file to one list of members, of a bounded length, that every reader finds."""
    last = len(data) - _END.size
    if last < 0 or data[last : last + 4] != b"PK\x05\x06":
        raise DamageError("it does not end as a zip file does")
    _, disk, start, here, count, size, offset, comment = _END.unpack_from(data, last)
    end, plain = last, (here, count, size, offset)
    if data[max(0, last - _LOCATOR.size) : last].startswith(b"PK\x06\x07"):
        end = last - _LOCATOR.size - _END64.size
        if end < 0:
            raise DamageError("its directory is cut short")
        _, _, where, disks = _LOCATOR.unpack_from(data, last - _LOCATOR.size)
        mark, length, _, _, disk64, start64, here, count, size, offset = _END64.unpack_from(data, end)
        same = all(a in (b, full) for a, b, full in zip(plain, (here, count, size, offset), _FULL, strict=True))
        if mark != b"PK\x06\x06" or (where, disks, length, disk64, start64) != (end, 1, 44, 0, 0) or not same:
            raise DamageError("it has two directories")
    if (disk, start, comment) != (0, 0, 0) or here != count or offset + size != end:
        raise DamageError("its directory is not where it says")
    if count > _MOST_MEMBERS or size > _MOST_DIRECTORY_BYTES:
        raise DamageError(f"it has {count} files; at most {_MOST_MEMBERS} are read")


_FULL: Final = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
"""What stands in the plain end of a directory for numbers that only the wide one holds."""
