"""Heavy and foreign libraries: imported when they are needed, quiet while they work.

The converter's modules can be imported, and its passes listed, without torch or an engine.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, Final

from edgewise_converter.errors import MissingExtraError

EXTRA: Final = "converter"
_CHATTY_LOGGERS: Final = ("torch", "torchao", "litert_torch", "ai_edge_quantizer", "onnxscript", "onnx_ir", "absl")
_QUIET_ENVIRONMENT: Final = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "LITERT_TORCH_SHOW_PROGRESS": "n",
}


def need(module: str) -> Any:
    """Import a library that comes with the converter's extra.

    Raises:
        MissingExtraError: it is not installed, or does not load.
    """
    try:
        with quietly():
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"converting needs {module.partition('.')[0]}, which does not load ({error}): "
            f"install the extra with  pip install 'edgewise[{EXTRA}]'"
        ) from error


@contextlib.contextmanager
def quietly(*, progress_bars: bool = False) -> Iterator[None]:
    """Hold back what foreign libraries warn and log below the level of an error.

    Only for the duration of a call into them. With `progress_bars`, also what they draw on
    the standard error stream; a failure raises as ever.
    """
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    before = {name: os.environ.get(name) for name in _QUIET_ENVIRONMENT}
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if progress_bars:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(_quiet_root())
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        os.environ.update(_QUIET_ENVIRONMENT)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextlib.contextmanager
def native_quiet() -> Iterator[None]:
    """Hold back what native code writes to the standard error stream itself, past Python's.

    For short calls into an engine alone: another thread's lines would be lost, too.
    """
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is no such stream
        yield
        return
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _quiet_root() -> Iterator[None]:
    """Hold back what is logged at the root itself; loggers with a name keep their way to its handlers.

    The handler that takes nothing keeps `logging.warning` from configuring logging for the whole program.
    """
    root, nothing = logging.getLogger(), logging.NullHandler()
    root.addFilter(_is_error)
    root.addHandler(nothing)
    try:
        yield
    finally:
        root.removeHandler(nothing)
        root.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
