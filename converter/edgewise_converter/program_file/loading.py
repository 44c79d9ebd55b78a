"""Looking through a program before torch opens it.

`torch.export.load` unpickles what an archive marks as pickled, loads its native libraries, makes source of its graph
and runs it, and evaluates shape expressions and guards as Python. Each would run an outsider's code. So every member,
every operator and every text is held to what torch itself writes, and torch gets a new archive of these members only.
What remains is torch's own reader, and the operators, which take the time and memory that the graph asks for.
"""

from __future__ import annotations

from typing import Any

from edgewise_protocol.bounds import MAX_BUNDLE_BYTES

from edgewise_converter.errors import ModelFileError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.program_file.archive import MODEL, SAMPLES, members_of, packed
from edgewise_converter.program_file.document import check_document, parse
from edgewise_converter.program_file.harm import HarmError
from edgewise_converter.program_file.payloads import check_tensors, plain_samples


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
    if len(data) > MAX_BUNDLE_BYTES:
        raise ModelFileError(f"{name} has {len(data)} bytes; at most {MAX_BUNDLE_BYTES} are read")
    try:
        members = members_of(data)
        check_tensors(torch, members)
        check_document(torch, "ExportedProgram", parse(members[MODEL], MODEL))
        members[SAMPLES] = plain_samples(torch, members[SAMPLES])
        with quietly():
            return torch.export.load(packed(members))
    except HarmError as error:
        raise ModelFileError(
            f"{name} holds {error}, which could run code when it is loaded, and was not opened: export the module "
            "again with torch.export.save, or give it as MODULE:FACTORY or as ONNX"
        ) from error
    except Exception as error:
        raise ModelFileError(
            f"{name} is not a program that this torch can load, or is cut short: {str(error)[:300]}"
        ) from error
