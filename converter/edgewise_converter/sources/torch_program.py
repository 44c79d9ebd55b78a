"""An exported torch program as a model: names and shapes of its tensors, and its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from edgewise_protocol.manifest import TensorSpec

from edgewise_converter.engines.dtypes import PROTOCOL
from edgewise_converter.engines.named import common_batch, with_free_batch
from edgewise_converter.errors import ModelFileError
from edgewise_converter.libraries import need
from edgewise_converter.requests import Tensors
from edgewise_converter.source import FOREIGN, Source, evaluating
from edgewise_converter.sources.feeding import check_state
from edgewise_converter.sources.flat_module import flat_module
from edgewise_converter.sources.model import Model
from edgewise_converter.sources.provenance import lineage_of_file
from edgewise_converter.sources.reading import Wanted, judged_by, prepare, task_of
from edgewise_converter.sources.shape import Shape


def model_of(source: Source, what: str, arrays: tuple[Tensors, Tensors | None], wanted: Wanted, digest: str) -> Model:
    """A source with its samples.

    Args:
        source: the program.
        what: where it comes from, for people.
        arrays: see `reading.arrays_of`.
        wanted: what the user says of it.
        digest: of the program, SHA-256.

    Raises:
        SampleError, MetricError: see `sources.opening.open_model`.
    """
    shape = Shape(source.inputs, source.outputs, source.batch)
    shape = replace(shape, state=check_state(wanted.state, shape))
    ready = prepare(*arrays, shape, source.call, in_order=False)
    task = task_of(wanted, ready.y)
    notes = ready.notes
    if source.batch != -1:
        notes += (f"{what} does not take a free batch: it goes to devices with a batch of {source.batch or 1}",)
    return Model(
        name=wanted.name or Path(what.replace(":", "-").replace(".pt2", "")).name,
        task=task,
        labels=wanted.labels,
        inputs=source.inputs,
        outputs=source.outputs,
        state=shape.state,
        origin=source,
        calibration=ready.calibration,
        heldout=ready.heldout,
        y=ready.y,
        metric=judged_by(wanted, ready.y, task),
        lineage=lineage_of_file(digest, what, ready, wanted.origin),
        digest=digest,
        sequences=ready.sequences,
        notes=notes,
    )


def source_of(program: Any, feeds: Tensors, what: str) -> Source:
    """A program with its tensors named; `feeds` is one request that it takes, by input, in order.

    Raises:
        ModelFileError: it does not run on it, or gives what is no tensor.
    """
    torch = need("torch")
    try:
        module = flat_module(program)
        evaluating(module)
        with torch.no_grad():
            answers = module(*(torch.from_numpy(array) for array in feeds.values()))
    except FOREIGN as error:
        raise ModelFileError(f"{what} does not run on the first sample: {str(error)[:400]}") from error
    shapes = _shapes(torch, program)
    named = _named(torch, answers, what)
    given = [tuple(-1 if isinstance(n, torch.SymInt) else int(n) for n in v.shape) for v in _outputs(torch, program)]
    batch = common_batch([*shapes, *given])
    inputs = tuple(_spec(name, feeds[name].dtype, shape, batch) for name, shape in zip(feeds, shapes, strict=True))
    outputs = tuple(
        _spec(name, value.detach().numpy().dtype, shape, batch)
        for (name, value), shape in zip(named.items(), given, strict=True)
    )
    return Source(program, module, inputs, outputs, batch)


def digest_of_source(source: Source) -> str:
    """SHA-256 over a program's operations and weights, and over the names, types and shapes of its tensors.

    A graph holds no names of outputs.
    """
    program = source.program
    digest = hashlib.sha256(f"{program.graph}\0{source.inputs}\0{source.outputs}\0".encode())
    for name, tensor in sorted({**program.state_dict, **program.constants}.items()):
        array = np.ascontiguousarray(tensor.detach().numpy()) if hasattr(tensor, "detach") else np.asarray(str(tensor))
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def input_names(program: Any) -> tuple[str, ...]:
    """Names of a program's inputs, in the order of its arguments."""
    return tuple(str(name) for name in program.graph_signature.user_inputs)


def _shapes(torch: Any, program: Any) -> list[tuple[int, ...]]:
    wanted = set(input_names(program))
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]
    return [tuple(-1 if isinstance(n, torch.SymInt) else int(n) for n in value.shape) for value in values]


def _outputs(torch: Any, program: Any) -> Sequence[Any]:
    names = [str(name) for name in program.graph_signature.user_outputs]
    by_name = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return [by_name[name] for name in names]


def _named(torch: Any, answers: Any, what: str) -> dict[str, Any]:
    """Output tensors by name: a dict's keys, else `output`, or `output_0` and so on."""
    flat, _ = torch.utils._pytree.tree_flatten(answers)
    if not flat or not all(isinstance(value, torch.Tensor) for value in flat):
        raise ModelFileError(f"{what} gives something that is no tensor: return tensors, or a dict of them")
    if isinstance(answers, dict) and all(isinstance(value, torch.Tensor) for value in answers.values()):
        return {str(name): value for name, value in answers.items()}
    return {"output" if len(flat) == 1 else f"output_{i}": value for i, value in enumerate(flat)}


def _spec(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], batch: int | None) -> TensorSpec:
    if dtype not in PROTOCOL:
        raise ModelFileError(f"the tensor {name!r} is {dtype}, which devices do not serve")
    return TensorSpec(name=name, dtype=PROTOCOL[dtype], shape=with_free_batch(shape, batch))
