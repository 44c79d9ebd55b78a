"""What an archive holds beside its graph: weights and constants as plain numbers, and the inputs of the export."""

from __future__ import annotations

import io
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from edgewise_converter.libraries import quietly
from edgewise_converter.program_file.archive import CONSTANTS, CONSTANTS_LIST, WEIGHTS, WEIGHTS_LIST, stored_in
from edgewise_converter.program_file.document import PLAIN, check_document, is_key, parse
from edgewise_converter.program_file.harm import DamageError, HarmError

_TENSORS: Final = (
    (WEIGHTS_LIST, WEIGHTS, re.compile("weight_[0-9]+")),
    (CONSTANTS_LIST, CONSTANTS, re.compile("tensor_[0-9]+")),
)
_DEEPEST: Final = 50


def check_tensors(torch: Any, members: Mapping[str, bytes]) -> None:
    """Hold weights and constants to numbers that the archive holds.

    Raises:
        HarmError: one is an object that unpickling makes.
        DamageError: one is not there, or has no numbers.
    """
    for listing, folder, named in _TENSORS:
        document = parse(members[listing], listing)
        check_document(torch, "PayloadConfig", document)
        for what, payload in document.get("config", {}).items():
            path = str(payload.get("path_name"))
            if payload.get("use_pickle") is not False or not named.fullmatch(path):
                raise HarmError(f"the pickled object {what[:80]!r}")
            if folder + path not in members or not payload.get("tensor_meta"):
                raise DamageError(f"it holds no {path} for {what[:80]!r}")
            meta = payload["tensor_meta"]
            numbers = [*meta.get("sizes", ()), *meta.get("strides", ()), meta.get("storage_offset", {})]
            if any(set(number) != {"as_int"} for number in numbers):
                raise DamageError(f"{what[:80]!r} has no fixed shape")
            # Torch makes zeros in the shape given where there are no bytes.
            if not members[folder + path] and math.prod(size["as_int"] for size in meta["sizes"]):
                raise DamageError(f"{path} is empty")


def plain_samples(torch: Any, data: bytes) -> bytes:
    """The inputs that the program was exported with, saved anew from what reading them without code gives.

    Torch reads them with code where reading without fails, so it gets none but these bytes.

    Raises:
        HarmError: they are other than tensors and plain values.
        DamageError: the file is not such as torch saves.
    """
    if not data:
        return data
    stored_in(data)
    try:
        with quietly():
            found = torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise HarmError("pickled Python objects in its sample inputs") from error
    if type(found) is not tuple or len(found) != 2 or type(found[0]) is not tuple or type(found[1]) is not dict:
        raise DamageError("its sample inputs are not those of a call")
    _check_sample(torch, found, _DEEPEST)
    out = io.BytesIO()
    torch.save(found, out)
    return out.getvalue()


def _check_sample(torch: Any, value: Any, deepest: int) -> None:
    if not deepest:
        raise DamageError("its sample inputs are nested too deeply")
    if type(value) in (tuple, list):
        for item in value:
            _check_sample(torch, item, deepest - 1)
    elif type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if not is_key(key):
                raise HarmError(f"the key {str(key)[:80]!r} in its sample inputs")
            _check_sample(torch, item, deepest - 1)
    elif isinstance(value, torch.Tensor):
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout is not torch.strided:
            raise HarmError("a tensor of a class of its own in its sample inputs")
    elif isinstance(value, str):
        if not PLAIN.fullmatch(value):
            raise HarmError(f"the text {value[:80]!r} in its sample inputs")
    elif value is not None and type(value) not in (int, float, bool, complex, torch.dtype, torch.device):
        raise HarmError("pickled Python objects in its sample inputs")
