"""Finished ONNX files in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from edgewise_protocol.manifest import DType, TensorSpec
from numpy.typing import NDArray

from edgewise_converter.engines.dtypes import NUMPY, PROTOCOL
from edgewise_converter.engines.named import FREE, NamedModel, Tensors, common_batch, with_free_batch
from edgewise_converter.engines.time_limit import ANSWER_S, TimeLimit
from edgewise_converter.errors import EngineError, ModelFileError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.onnx_graph import output_scale

FIRST_S: Final = ANSWER_S
"""For an answer, the first and any other that is judged."""
_ERRORS_ONLY: Final = 3
_FATAL_ONLY: Final = 4
_DYNAMIC: Final = b"DynamicQuantize"
"""In the name of every operator that scales activations by what it is given; both containers hold names plainly."""
_NARROW: Final = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger")
_TYPES: Final[dict[str, DType]] = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    **{f"tensor({name.lower()})": name for name in NUMPY if "INT" in name},
}


class NamedOnnx(NamedModel):
    """An ONNX file.

    Args:
        data: the file.
        threads: of one call.
        container: whether it is onnxruntime's own container of an ONNX graph, which a file does not decide by itself.

    Raises:
        ModelFileError: its tensors are of a kind that devices do not serve.
        EngineError: onnxruntime refuses it.
    """

    engine = "onnxruntime"

    def __init__(self, data: bytes, threads: int = 1, *, container: bool = False) -> None:
        self._answered = False
        ort = need("onnxruntime")
        self.version = str(ort.__version__)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry("session.load_model_format", "ORT" if container else "ONNX")
        try:
            with quietly():
                self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(f"onnxruntime {self.version} cannot load the model: {str(error)[:400]}") from error
        taken, given = self._session.get_inputs(), self._session.get_outputs()
        shapes = {arg.name: _shape(arg) for arg in (*taken, *given)}
        self.batch = common_batch(list(shapes.values()))
        self.inputs = tuple(_spec(arg, shapes[arg.name], self.batch, "input") for arg in taken)
        self.outputs = tuple(_spec(arg, shapes[arg.name], self.batch, "output") for arg in given)
        self._steps = {}
        self.mixes_batch = _DYNAMIC in data
        self.precision = "float32"
        self._limit = TimeLimit(_quiet_run)
        if container:
            return  # It does not tell its precision; who made it knows.
        self.precision = _precision(need("onnx"), need("onnx").load_model_from_string(data))
        if self.precision == "int8" and len(self.outputs) == 1 and (step := output_scale(data)) is not None:
            self._steps = {self.outputs[0].name: step}

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        return self._answers(feeds, self._limited if self._answered else self._first)

    def call(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """See `NamedModel.call`; after the first answer without a limit of time: who times it asks what was judged."""
        return self._answers(feeds, self._session.run if self._answered else self._first)

    def _answers(
        self, feeds: Mapping[str, NDArray[Any]], run: Callable[[list[str], dict[str, NDArray[Any]]], list[Any]]
    ) -> Tensors:
        names = [spec.name for spec in self.outputs]
        try:
            answers = run(names, dict(feeds))
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"onnxruntime fails on the model: {str(error)[:400]}") from error
        return {name: np.asarray(answer) for name, answer in zip(names, answers, strict=True)}

    def _limited(self, names: list[str], feeds: dict[str, NDArray[Any]]) -> list[Any]:
        """An answer after the first: a loop that ended once may have no end on other inputs."""
        limit = self._limit
        limit.begin(FIRST_S)
        try:
            answers: list[Any] = self._session.run(names, feeds, limit.options)
        except Exception:
            if limit.passed:
                raise _late("a request") from None
            raise
        finally:
            limit.end()
        return answers

    def _first(self, names: list[str], feeds: dict[str, NDArray[Any]]) -> list[Any]:
        """The first answer, in a thread of its own: that it takes too long, or that the user ends it, ends it."""
        options = _quiet_run()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self._session.run, names, feeds, options)
            try:
                answers: list[Any] = running.result(FIRST_S)
            except TimeoutError:
                raise _late("the first request") from None
            finally:
                options.terminate = True
        self._answered = True
        return answers

    def steps(self) -> dict[str, float]:
        """See `NamedModel.steps`."""
        return dict(self._steps)


def _quiet_run() -> Any:
    options = need("onnxruntime").RunOptions()
    options.log_severity_level = _FATAL_ONLY
    return options


def _late(what: str) -> EngineError:
    return EngineError(
        f"onnxruntime has no answer to {what} after {FIRST_S:g} s: the model is too large for a device, or holds a "
        "loop without an end"
    )


def _shape(arg: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) and size > 0 else FREE for size in arg.shape)


def _spec(arg: Any, shape: tuple[int, ...], batch: int | None, what: str) -> TensorSpec:
    if arg.type not in _TYPES:
        mend = "; export a classifier of scikit-learn with zipmap=False" if arg.type.startswith("seq(map") else ""
        raise ModelFileError(f"the {what} {arg.name!r} is a {arg.type}, which devices do not serve{mend}")
    return TensorSpec(name=arg.name, dtype=_TYPES[arg.type], shape=with_free_batch(shape, batch))


def _precision(onnx: Any, model: Any) -> str:
    if any(node.op_type in _NARROW for node in model.graph.node):
        return "int8"
    types = {PROTOCOL.get(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(t.data_type))) for t in model.graph.initializer}
    return "float16" if "FP16" in types else "float32"
