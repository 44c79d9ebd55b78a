"""The child of `probe`: loads the file from standard input, answers zeros, and says how it went."""

from __future__ import annotations

import resource
import sys
from typing import Final

from edgewise_converter.libraries import need, quietly

REFUSED: Final = 3
LOADED: Final = b"the file runs"


def main() -> None:
    """Arguments: bytes of memory, seconds of processor time. Exit status 0 if the file runs, 3 if it is refused."""
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (bound, bound))
    data = sys.stdin.buffer.read()
    try:
        _run(data)
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent is told
        sys.stdout.buffer.write(f"{type(error).__name__}: {error}".encode()[-2000:])
        sys.stdout.buffer.flush()
        sys.exit(REFUSED)
    sys.stdout.buffer.write(LOADED)
    sys.stdout.buffer.flush()


def _run(data: bytes) -> None:
    import numpy as np

    module = need("ai_edge_litert.interpreter")
    with quietly():
        interpreter = module.Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
        for details in interpreter.get_input_details():
            if details["dtype"] != np.bytes_ and details["dtype"] is not str:
                interpreter.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
        interpreter.invoke()
        for details in interpreter.get_output_details():
            interpreter.get_tensor(details["index"])
