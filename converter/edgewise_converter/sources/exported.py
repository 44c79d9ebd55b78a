"""An `ExportedProgram` in a `.pt2` file as a model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from edgewise_protocol.bounds import MAX_BUNDLE_BYTES

from edgewise_converter.errors import ModelFileError
from edgewise_converter.program_file import load_program
from edgewise_converter.requests import Tensors
from edgewise_converter.sources.model import Model
from edgewise_converter.sources.reading import Wanted, arrays_of
from edgewise_converter.sources.torch_program import input_names, model_of, source_of


def read(path: Path, wanted: Wanted) -> Model:
    """Load a program and the samples of its inputs.

    Raises:
        ModelFileError: it does not load, or does not run.
        SampleError, MetricError: the samples are not such as it takes.
        MissingExtraError: torch is not installed.
    """
    try:
        if path.stat().st_size > MAX_BUNDLE_BYTES:
            raise ModelFileError(f"{path.name} has {path.stat().st_size} bytes; at most {MAX_BUNDLE_BYTES} are read")
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error
    program = load_program(data, path.name)
    arrays = arrays_of(wanted)
    source = source_of(program, _example(program, path.name), path.name)
    return model_of(source, path.name, arrays, wanted, hashlib.sha256(data).hexdigest())


def _example(program: Any, what: str) -> Tensors:
    """Zeros in the shapes and types that the program was exported with; two where a size is free."""
    found = {}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name in input_names(program):
        value: Any = nodes[name].meta.get("val") if name in nodes else None
        if not hasattr(value, "shape"):
            raise ModelFileError(f"{what} takes {name} besides tensors: export a module that takes tensors alone")
        shape = tuple(int(n) if isinstance(n, int) else 2 for n in value.shape)
        found[name] = np.zeros(shape, str(value.dtype).removeprefix("torch."))
    return found
