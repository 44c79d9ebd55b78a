"""Exported torch programs (`.pt2`), opened only where nothing but tensors and torch's own operators is in them.

`torch.export.load` unpickles what an archive marks as pickled, loads its native libraries, calls whatever
a node names under `torch`, and evaluates shape expressions and guards as Python. Each would run an
outsider's code, so the archive is looked through first. What remains is torch's own reader.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any, Final

from edgewise_protocol.bounds import MAX_BUNDLE_BYTES

from edgewise_converter.errors import ModelFileError
from edgewise_converter.libraries import need, quietly

_MOST_MEMBERS: Final = 100_000
_MOST_JSON_BYTES: Final = 256 << 20
_NATIVE: Final = ("aotinductor", "delegate")
"""Folders of compiled code."""
_PAYLOADS: Final = ("weights_config.json", "constants_config.json")
_TENSORS: Final = ("weight_", "tensor_")
"""Payloads that are tensors; others are objects that unpickling makes."""
_OPERATOR: Final = re.compile(
    r"torch\.ops\.[a-z]\w*\.\w+(\.\w+)?|_operator\.(?!call|methodcaller|attrgetter)\w+|math\.\w+|torch\._?sym_\w+|torch\.amp\.autocast_mode\._\w+"
)
_CALL: Final = re.compile(r"([\w.]*)\s*\(")
_STRING: Final = re.compile(r"'([\w. ]*)'|\"([\w. ]*)\"")
_ODD: Final = re.compile(r"__|\\|['\"`@;{}]|[\])]\s*\(|\b(lambda|import|for|yield|await)\b|:=")
_ARITHMETIC: Final = re.compile(
    r"Symbol|Dummy|Integer|Float|Rational|Add|Mul|Pow|Mod|Min|Max|Abs|floor|ceiling|sign|sqrt|exp|log|And|Or|Not|Xor|"
    r"Eq|Ne|Le|Lt|Ge|Gt|Rel|Equality|Unequality|(Strict)?(Less|Greater)Than|Piecewise|ExprCondPair|Tuple|"
    r"Boolean(True|False)|(Negative)?Infinity|(.*\.)?(size|stride|storage_offset|dim|numel)|int|float|bool|abs|max|min|"
    r"round|and|or|not|in|is|if|else|math\.(floor|ceil|trunc|sqrt|log|exp)"
)
_TORCH_ARITHMETIC: Final = re.compile(
    r"(torch\.)?_?sym_\w+|(FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|"
    r"PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|"
    r"RoundToInt|RoundDecimal|ToFloat|Identity|BitwiseFn_\w+|OpaqueUnaryFn_\w+)"
)


def load_program(data: bytes, name: str) -> Any:
    """Open a program.

    Args:
        data: the file.
        name: of it, for messages.

    Returns:
        a `torch.export.ExportedProgram`.

    Raises:
        ModelFileError: it is damaged, or holds code.
        MissingExtraError: torch is not installed.
    """
    torch = need("torch")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _look_through(torch, archive, name)
        with quietly():
            return torch.export.load(io.BytesIO(data))
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(
            f"{name} is not a program that this torch can load, or is cut short: {str(error)[:300]}"
        ) from error


def _look_through(torch: Any, archive: zipfile.ZipFile, name: str) -> None:
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS or sum(m.file_size for m in members) > MAX_BUNDLE_BYTES:
        raise ModelFileError(f"{name} unpacks to more than {MAX_BUNDLE_BYTES} bytes")
    if len({m.filename.lower() for m in members}) != len(members):
        raise ModelFileError(f"{name} holds two files of one name: the file is damaged, or made to harm")
    for member in members:
        path = member.filename
        if path.endswith(".so") or any(f"/{folder}/" in path for folder in _NATIVE):
            raise _code(name, f"compiled code ({path})")
        if path.endswith(".pt"):
            _check_pickle(torch, archive.read(member), name, path)
        elif path.endswith(_PAYLOADS):
            for what, payload in json.loads(_text(archive, member)).get("config", {}).items():
                stored = str(payload.get("path_name"))
                if not stored.startswith(_TENSORS):
                    raise _code(name, f"the pickled object {what!r}")
                if payload.get("use_pickle"):
                    _check_pickle(torch, archive.read(f"{path.rpartition('/')[0]}/{stored}"), name, what)
        elif path.endswith(".json"):
            for key, value in _walk(json.loads(_text(archive, member))):
                _check_word(key, value, name)


def _text(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > _MOST_JSON_BYTES:
        raise ModelFileError(f"{member.filename} has {member.file_size} bytes; at most {_MOST_JSON_BYTES} are read")
    return archive.read(member)


def _check_pickle(torch: Any, data: bytes, name: str, what: str) -> None:
    if not data:
        return
    try:
        with quietly():
            torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise _code(name, f"pickled Python objects in {what!r}") from error


def _walk(value: Any) -> Iterator[tuple[str, str]]:
    """Every string of a document with the key that it stands under; those of lists under the list's."""
    todo: list[tuple[str, Any]] = [("", value)]
    while todo:
        key, found = todo.pop()
        if isinstance(found, dict):
            todo.extend((str(k), v) for k, v in found.items())
        elif isinstance(found, list):
            todo.extend((key, v) for v in found)
        elif isinstance(found, str):
            yield key, found


def _check_word(key: str, value: str, name: str) -> None:
    if key in ("target", "as_operator") and value.startswith(("torch", "_operator", "math")):
        if not _OPERATOR.fullmatch(value):
            raise _code(name, f"a call of {value[:80]!r}")
    elif key in ("expr_str", "guards_code"):
        bare = _STRING.sub("_", value)
        calls = [found.lstrip(".").removeprefix("_.") for found in _CALL.findall(bare)]
        strange = [c for c in calls if c and not _is_arithmetic(c)]
        if strange or _ODD.search(bare):
            raise _code(name, f"the shape expression {value[:80]!r}")


def _is_arithmetic(call: str) -> bool:
    return bool(_ARITHMETIC.fullmatch(call) or _TORCH_ARITHMETIC.fullmatch(call))


def _code(name: str, what: str) -> ModelFileError:
    return ModelFileError(
        f"{name} holds {what}, which runs code when it is loaded, and was not opened: export the module again with "
        "torch.export.save, or give it as MODULE:FACTORY or as ONNX"
    )
