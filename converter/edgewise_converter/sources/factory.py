"""`module:factory` as a model: a torch module that the user's own code makes, exported here.

The batch is left free; where the module does not allow that, it is exported for the shapes of
one sample.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgewise_converter.errors import ModelFileError, SampleError
from edgewise_converter.importing.samples import LABELS, key_of
from edgewise_converter.libraries import need, quietly
from edgewise_converter.requests import Tensors
from edgewise_converter.source import evaluating
from edgewise_converter.sources.model import Model
from edgewise_converter.sources.reading import Wanted, arrays_of
from edgewise_converter.sources.torch_program import digest_of_source, model_of, source_of

_EXAMPLE: Final = 2
"""Rows of the example batch; torch would take a single one for a constant."""


def read(what: str, wanted: Wanted) -> Model:
    """Call the factory, and export its module.

    Args:
        what: `package.module:function`; the function takes nothing and returns a `torch.nn.Module`. The
            current folder is on the import path.
        wanted: what the user says of it.

    Raises:
        ModelFileError: the factory fails, or torch cannot export the module; the operator is named.
        SampleError, MetricError: the samples are not such as it takes.
        MissingExtraError: torch is not installed.
    """
    torch = need("torch")
    arrays = arrays_of(wanted)
    module = make(what)
    evaluating(module)
    feeds = _rows(what, _parameters(module), arrays[0], {name for name, _ in wanted.state})
    program = _export(torch, module, feeds, what)
    example = {name: array if _is_free(program, torch) else array[:1] for name, array in feeds.items()}
    source = source_of(program, example, what)
    return model_of(source, what, arrays, wanted, digest_of_source(source))


def make(what: str) -> Any:
    """The module that a factory gives."""
    torch = need("torch")
    module_name, _, function = what.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), function)()
    except (ImportError, AttributeError) as error:
        raise ModelFileError(f"{what}: {error}; write MODULE:FUNCTION, importable from the current folder") from error
    except (Exception, SystemExit) as error:
        raise ModelFileError(f"the factory {what} failed: {type(error).__name__}: {str(error)[:300]}") from error
    if not isinstance(found, torch.nn.Module):
        raise ModelFileError(f"the factory {what} gives a {type(found).__name__}; a torch.nn.Module is needed")
    return found


def _parameters(module: Any) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty)


def _rows(what: str, names: tuple[str, ...], arrays: Tensors, state: set[str]) -> Tensors:
    """The first rows of every input, in the order of the module's arguments."""
    keys = {name: key_of(name, arrays) for name in names}
    given = [key for key in arrays if key != LABELS]
    if len(names) == 1 and keys[names[0]] is None and len(given) == 1:
        keys = {names[0]: given[0]}
    if lacking := [name for name, key in keys.items() if key is None]:
        hint = " (of a state, give its arrays: their shapes cannot be told)" if set(lacking) & state else ""
        raise SampleError(
            f"{what} takes {', '.join(names)}; the samples hold {', '.join(given)}, not {', '.join(lacking)}{hint}"
        )
    rows = {name: arrays[key] for name, key in keys.items() if key is not None}
    if any(a.ndim == 0 or len(a) == 0 for a in rows.values()):
        raise SampleError(f"{what}: an input's array holds no samples; (N, ...) is needed")
    return {n: np.ascontiguousarray(np.repeat(a[:1], _EXAMPLE, 0) if len(a) < 2 else a[:2]) for n, a in rows.items()}


def _export(torch: Any, module: Any, feeds: Tensors, what: str) -> Any:
    free = tuple({0: torch.export.Dim("batch")} for _ in feeds)
    # torch raises what it likes; the second attempt tells what is wrong.
    with contextlib.suppress(Exception), quietly(progress_bars=True), torch.no_grad():
        return torch.export.export(module, tuple(map(torch.from_numpy, feeds.values())), dynamic_shapes=free)
    try:
        with quietly(progress_bars=True), torch.no_grad():
            return torch.export.export(module, tuple(torch.from_numpy(a[:1]) for a in feeds.values()))
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelFileError(
            f"torch cannot export {what}: {first.strip()[:300]}. The module must do the same for every input: no "
            "branches on values; see https://pytorch.org/docs/stable/export.html"
        ) from error


def _is_free(program: Any, torch: Any) -> bool:
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and "val" in node.meta]
    return any(isinstance(n, torch.SymInt) for value in values if hasattr(value, "shape") for n in value.shape)
