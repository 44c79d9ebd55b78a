"""From bytes to the schema's objects, and only from bytes that were verified."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgewise_converter.errors import ModelFileError
from edgewise_converter.libraries import need
from edgewise_converter.tflite_file.structure import check
from edgewise_converter.tflite_file.verify import verify


def read(data: bytes, name: str = "the file") -> Any:
    """Read a file.

    Args:
        data: the file.
        name: of it, for messages.

    Returns:
        `ModelT` of ai-edge-litert's schema. All buffers' data are within (uint8 arrays that cannot be
        written to), lists of numbers are lists.

    Raises:
        ModelFileError: it is no TFLite file, is damaged, or says what cannot be.
    """
    verify(data, name)
    schema = need("ai_edge_litert.schema_py_generated")
    try:
        model = schema.ModelT.InitFromPackedBuf(data)
        _gather(model, data)
        _lists(model)
        check(model)
    except ModelFileError as error:
        raise ModelFileError(f"{name} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{name} is damaged: {type(error).__name__}: {str(error)[:200]}") from error
    return model


def _gather(model: Any, data: bytes) -> None:
    """Put what is stored behind the flatbuffer (files of more than 2 GB) where it belongs."""
    for buffer in model.buffers or ():
        if buffer.offset > 1:
            buffer.data = _part(data, buffer.offset, buffer.size)
        buffer.offset = buffer.size = 0
    for graph in model.subgraphs or ():
        for operator in graph.operators or ():
            if operator.largeCustomOptionsOffset > 1:
                operator.customOptions = _part(data, operator.largeCustomOptionsOffset, operator.largeCustomOptionsSize)
            operator.largeCustomOptionsOffset = operator.largeCustomOptionsSize = 0


def _part(data: bytes, offset: int, size: int) -> Any:
    if offset + size > len(data):
        raise ModelFileError(f"{size} bytes at {offset} are not within its {len(data)}")
    return np.frombuffer(data, np.uint8, size, offset)


def _lists(value: Any) -> None:
    """Arrays of numbers as lists, below `value`; the buffers' stay arrays."""
    fields = vars(value)
    for name, found in fields.items():
        if isinstance(found, np.ndarray) and found.dtype != np.uint8:
            fields[name] = found.tolist()
        elif isinstance(found, list):
            for item in found:
                if hasattr(item, "__dict__"):
                    _lists(item)
        elif hasattr(found, "__dict__") and not isinstance(found, np.ndarray):
            _lists(found)
