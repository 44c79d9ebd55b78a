"""Danger: a message type that is first decoded by two threads at once, of which one kills the process."""

from __future__ import annotations

import subprocess
import sys

import msgspec
from edgewise_protocol.structs import prepare_structs

FIRST_USES = """
import sys, threading
from typing import Annotated, Literal
import msgspec
from edgewise_protocol.structs import prepare_structs

sys.setswitchinterval(1e-6)
DATA = b'{"a":"x","b":"a","c":[1],"d":[{"x":1}],"e":null,"f":1.0,"g":"s"}'

def fresh():
    class Fresh(msgspec.Struct, frozen=True):
        a: Annotated[str, msgspec.Meta(max_length=10)]
        b: Literal["a", "b"]
        c: tuple[int, ...]
        d: list[dict[str, int]]
        e: int | None
        f: float
        g: str
    return Fresh

kinds = [fresh() for _ in range(1_000)]
assert prepare_structs() >= len(kinds)
for kind in kinds:
    together = threading.Barrier(4)
    def decode():
        together.wait()
        msgspec.json.decode(DATA, type=kind)
    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print("decoded", len(kinds))
"""


def test_prepared_types_are_first_decoded_by_several_threads_at_once():
    """Without `prepare_structs`, msgspec 0.22.0 ends the process at one of the first of them."""
    ended = subprocess.run([sys.executable, "-c", FIRST_USES], capture_output=True, text=True, timeout=50)
    assert (ended.returncode, ended.stdout) == (0, "decoded 1000\n"), ended.stderr


def test_a_record_that_is_never_decoded_is_passed_over():
    class _Record(msgspec.Struct):
        handle: Unknown  # noqa: F821

    assert prepare_structs() > 0
