"""An outside TFLite file's first answers to samples, in a process of its own.

LiteRT cannot be stopped within a process, and some inputs end it: a loop without an end, a shape
that takes all memory, a kernel that traps. What is run on samples in this process was therefore
run on the same samples apart from it before; equal requests, in the same order, go the same way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from edgewise_converter.engines.apart_child import ANSWER, RESET, receive, send
from edgewise_converter.engines.named import NamedModel, Tensors
from edgewise_converter.engines.named_tflite import NamedTflite
from edgewise_converter.errors import EngineError
from edgewise_converter.tflite_file.probe import MEMORY

ANSWER_S: Final = 120.0
"""For one answer."""
_CHILD: Final = "from edgewise_converter.engines.apart_child import main; main()"


class NamedApart(NamedModel):
    """A model that answers from another process, for as long as it is entered (`with`).

    Args:
        model: the file, loaded here: what it takes and gives.
        data: the file.
        integers: inputs that the client gives as the file's own integers.

    Raises:
        EngineError: see `NamedTflite`; also, the file ends or hangs its process on what it was asked.
    """

    def __init__(self, model: NamedTflite, data: bytes, integers: frozenset[str] = frozenset()) -> None:
        self.engine, self.version, self.precision = model.engine, model.version, model.precision
        self.inputs, self.outputs, self.batch = model.inputs, model.outputs, model.batch
        self.stateful, self.mixes_batch = model.stateful, model.mixes_batch
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, str(MEMORY), str(ANSWER_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONFAULTHANDLER": ""},
        )
        try:
            self._tell(data)
            self._tell(json.dumps(sorted(integers)).encode())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> NamedApart:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def reset(self) -> None:
        """See `NamedModel.reset`."""
        if self.stateful:
            self._tell(RESET)

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """See `NamedTflite.infer`."""
        if self.batch is not None:
            self.reset()
        return super().infer(feeds)

    def steps(self) -> dict[str, float]:
        """See `NamedModel.steps`; not asked of it."""
        return {}

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        # By number: names are the file's, and safetensors keeps some for itself.
        self._tell(save({str(i): np.asarray(feeds[spec.name], order="C") for i, spec in enumerate(self.inputs)}))
        assert self._process.stdout is not None  # noqa: S101 - for the type checker: it was opened as a pipe
        answer = receive(self._process.stdout)
        if answer is None:
            raise self._ended()
        if not answer.startswith(ANSWER):
            raise EngineError(answer.decode("utf-8", "replace"))
        found = load(answer.removeprefix(ANSWER))
        return {spec.name: found[str(i)] for i, spec in enumerate(self.outputs)}

    def _tell(self, message: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - for the type checker: it was opened as a pipe
        try:
            send(self._process.stdin, message)
        except OSError:
            raise self._ended() from None

    def _ended(self) -> EngineError:
        status = self._process.wait()
        if status == -signal.SIGALRM:
            return EngineError(
                f"LiteRT has no answer to a sample after {ANSWER_S:g} s: the model is too large for a device, or holds "
                "a loop without an end"
            )
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return EngineError(
            f"the model crashes LiteRT on a sample ({how}): it is damaged, or made to harm; export it anew"
        )
