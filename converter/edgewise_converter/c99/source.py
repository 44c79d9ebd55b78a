"""From a graph to C99: constants in flash, one static arena, no heap, no recursion. Pure.

Names from the file never reach the C text: tensors are called by their place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.c99.arena import lower_bound
from edgewise_converter.c99.graph import Graph, Tensor, load
from edgewise_converter.c99.operators.emission import Emission, Value
from edgewise_converter.c99.operators.table import emit
from edgewise_converter.c99.storage import Storage, assign

_ROOM: Final = "edgewise_converter.c99"
_WIDTH: Final = 20
_CTYPE: Final = {"int8": "int8_t", "int32": "int32_t"}


@dataclass(frozen=True, slots=True)
class Sources:
    """Generated C, and what is known of it.

    Attributes:
        files: by name: `model.c`, `model.h` and the kernels that it includes.
        inputs, outputs: the tensors of `model_invoke`, in its order.
        input_names, output_names: as clients know them.
        arena_bytes: of the static arena.
        arena_bound: below which no plan comes.
        constant_bytes: of weights, biases and factors.
        operators: how many run.
        identity: SHA-256 over the files; what the firmware tells.
    """

    files: dict[str, bytes]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    arena_bytes: int
    arena_bound: int
    constant_bytes: int
    operators: int
    identity: str


def generate(data: bytes, name: str = "the model") -> Sources:
    """C99 of an int8 TFLite file.

    Raises:
        ModelFileError: it is damaged.
        UnsupportedModelError: something in it cannot become C; which, where, and what to do.
    """
    graph = load(data, name)
    emissions = [emit(graph, op) for op in graph.ops]
    storage = assign(graph, [emission.sharing for emission in emissions])
    writer = _Writer(graph, storage)
    for position, emission in enumerate(emissions):
        writer.operator(position, emission)
    headers = sorted({emission.header for emission in emissions} | {"math.h"})
    kernels = {f"ew_{header}": _kernel(header) for header in headers}
    text = {"model.c": writer.source([h for h in headers if h != "math.h"]), "model.h": writer.header()}
    made = {file: content.encode("ascii") for file, content in (text | kernels).items()}
    return Sources(
        files=made,
        inputs=tuple(graph.tensors[i] for i in graph.inputs),
        outputs=tuple(graph.tensors[i] for i in graph.outputs),
        input_names=graph.input_names,
        output_names=graph.output_names,
        arena_bytes=storage.plan.size,
        arena_bound=lower_bound(storage.blocks),
        constant_bytes=writer.constant_bytes,
        operators=sum(bool(emission.calls) for emission in emissions),
        identity=identity_of(made),
    )


def identity_of(made: dict[str, bytes]) -> str:
    """SHA-256 over names and contents of files."""
    digest = hashlib.sha256()
    for name in sorted(made):
        digest.update(f"{name}\0{len(made[name])}\0".encode() + made[name])
    return digest.hexdigest()


def _kernel(header: str) -> str:
    text = (files(_ROOM) / "kernels" / header).read_text(encoding="ascii")
    return text.replace('#include "math.h"', '#include "ew_math.h"')


class _Writer:
    """Collects constants and statements, and writes them down."""

    def __init__(self, graph: Graph, storage: Storage) -> None:
        self._graph, self._storage = graph, storage
        self._constants: list[str] = []
        self._statements: list[str] = []
        self._tensors: dict[int, str] = dict(storage.expressions)
        self.constant_bytes = 0

    def operator(self, position: int, emission: Emission) -> None:
        """One operator's constants and statements."""
        if not emission.calls:
            return
        names = {f"c.{key}": f"{key}{position}" for key in emission.constants}
        for key, array in emission.constants.items():
            self._array(f"{key}{position}", array)
        if emission.settings is not None:
            kind, fields = emission.settings
            names["p"] = f"&p{position}"
            body = ", ".join(f".{name} = {_initializer(value)}" for name, value in fields.items())
            self._constants.append(f"static const struct {kind} p{position} = {{{body}}};")
        for call in emission.calls:
            self._statements.append(self._fill(call, names))

    def source(self, headers: Sequence[str]) -> str:
        """`model.c`."""
        size = max(1, self._storage.plan.size)
        copies = [
            f"memcpy(out{place}, {expression}, {self._graph.tensors[self._graph.outputs[place]].size});"
            for place, expression in self._storage.copies
        ]
        pointers = [*(f"in{i}" for i in range(len(self._graph.inputs)))]
        pointers += [f"out{i}" for i in range(len(self._graph.outputs))]
        missing = " || ".join(f"{pointer} == 0" for pointer in ("memory", *pointers))
        uses = any("(arena +" in statement for statement in (*self._statements, *copies))
        lines = [
            "/* Generated by Edgewise; changes are lost. */",
            '#include "model.h"',
            "#include <string.h>",
            *(f'#include "ew_{header}"' for header in headers),
            "",
            *self._constants,
            "",
            f"static int32_t model_arena[{-(-size // 4)}];",
            "",
            f"int model_invoke_in(void *memory, {self._parameters()}) {{",
            f"  if ({missing}) {{",
            "    return -1;",
            "  }",
            *(["  int8_t *const arena = (int8_t *)memory;"] if uses else []),
            *(f"  {statement}" for statement in (*self._statements, *copies)),
            "  return 0;",
            "}",
            "",
            f"int model_invoke({self._parameters()}) {{",
            f"  return model_invoke_in({', '.join(('model_arena', *pointers))});",
            "}",
            "",
        ]
        return "\n".join(lines)

    def header(self) -> str:
        """`model.h`."""
        sizes = [
            f"#define MODEL_{what}{place}_SIZE {self._graph.tensors[index].size}"
            for what, indices in (("IN", self._graph.inputs), ("OUT", self._graph.outputs))
            for place, index in enumerate(indices)
        ]
        return "\n".join(
            [
                "/* Generated by Edgewise; changes are lost. */",
                "#ifndef MODEL_H",
                "#define MODEL_H",
                "#include <stdint.h>",
                "",
                f"#define MODEL_INPUTS {len(self._graph.inputs)}",
                f"#define MODEL_OUTPUTS {len(self._graph.outputs)}",
                f"#define MODEL_ARENA_BYTES {max(4, self._storage.plan.size)}",
                *sizes,
                "",
                "#ifdef __cplusplus",
                'extern "C" {',
                "#endif",
                "/* Answers one request; 0, or -1 where a pointer is null. No buffer may overlap another.",
                "   model_invoke has one arena of its own and answers one request at a time; model_invoke_in works in",
                "   MODEL_ARENA_BYTES of the caller's, aligned to 4, and may run several times at once. */",
                f"int model_invoke({self._parameters()});",
                f"int model_invoke_in(void *memory, {self._parameters()});",
                "#ifdef __cplusplus",
                "}",
                "#endif",
                "#endif",
                "",
            ]
        )

    def _parameters(self) -> str:
        taken = [f"const int8_t *in{i}" for i in range(len(self._graph.inputs))]
        return ", ".join([*taken, *(f"int8_t *out{i}" for i in range(len(self._graph.outputs)))])

    def _fill(self, call: str, names: dict[str, str]) -> str:
        for key, name in names.items():
            call = call.replace(f"{{{key}}}", name)
        while (start := call.find("{t.")) >= 0:
            end = call.index("}", start)
            call = call[:start] + self._tensor(int(call[start + 3 : end])) + call[end + 1 :]
        return call

    def _tensor(self, index: int) -> str:
        if index not in self._tensors:
            data = self._graph.tensors[index].data
            if data is None:
                raise ValueError(f"tensor {index} is neither computed nor constant")
            self._tensors[index] = f"k{index}"
            self._array(f"k{index}", data)
        return self._tensors[index]

    def _array(self, name: str, array: NDArray[Any]) -> None:
        self.constant_bytes += array.nbytes
        values = [_literal(int(v)) for v in np.ascontiguousarray(array).ravel()]
        rows = [", ".join(values[i : i + _WIDTH]) for i in range(0, len(values), _WIDTH)]
        body = ",\n  ".join(rows)
        self._constants.append(f"static const {_CTYPE[str(array.dtype)]} {name}[{len(values)}] = {{\n  {body}}};")


def _initializer(value: Value) -> str:
    return f"{{{', '.join(map(_literal, value))}}}" if isinstance(value, tuple) else _literal(value)


def _literal(value: int) -> str:
    """-2147483648 is no literal of C: it is an operator before a number that does not fit."""
    return "INT32_MIN" if value == -(1 << 31) else str(value)
