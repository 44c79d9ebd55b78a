"""The child of `named_apart`: loads a TFLite file, and answers until its standard input ends.

Messages are bytes behind their length. In come the file, the names of integer inputs as JSON, then
requests: the inputs by number as safetensors, or nothing, to begin anew. Out go answers: the
outputs by number behind `ANSWER`, or the text of an error.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from typing import IO, Final

import numpy as np
from safetensors.numpy import load, save

ANSWER: Final = b"\0"
RESET: Final = b""
_LENGTH: Final = struct.Struct("<Q")


def send(stream: IO[bytes], message: bytes) -> None:
    """Write one message."""
    stream.write(_LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes | None:
    """Read one message; None where the stream ends before it does."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    message = stream.read(length)
    return message if len(message) == length else None


def main() -> None:
    """Arguments: bytes of memory, seconds for one answer, after which SIGALRM ends the process."""
    memory, seconds = int(sys.argv[1]), float(sys.argv[2])
    for what, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (bound, bound))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what engines print

    from edgewise_converter.engines.named_tflite import NamedTflite
    from edgewise_converter.errors import ConverterError

    requests = sys.stdin.buffer
    data, integers = receive(requests), receive(requests)
    if data is None or integers is None:
        return
    model = NamedTflite(data, frozenset(json.loads(integers)))
    while (request := receive(requests)) is not None:
        if request == RESET:
            model.reset()
            continue
        given = load(request)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            found = model.call({spec.name: given[str(i)] for i, spec in enumerate(model.inputs)})
        except (ConverterError, MemoryError) as error:
            answer = (str(error) or "LiteRT takes more memory than a model may").encode()
        else:
            answer = ANSWER + save(
                {str(i): np.asarray(found[spec.name], order="C") for i, spec in enumerate(model.outputs)}
            )
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(answers, answer)
