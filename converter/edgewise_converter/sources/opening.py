"""From what the user names to a model: the one door to the readers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.names import check_name

from edgewise_converter.errors import ModelFileError, RunError, SampleError
from edgewise_converter.run_record import RUN_FILE
from edgewise_converter.sources.model import Model
from edgewise_converter.sources.reading import Wanted

_WHAT: Final = "name a run directory, an .onnx, .tflite or .pt2 file, or MODULE:FACTORY of a torch module"


def open_model(what: str, wanted: Wanted | None = None) -> Model:
    """Open a run directory, a `.pt2`, `.onnx` or `.tflite` file, or what `module:factory` gives.

    Raises:
        RunError, GateError, ModelFileError: it cannot be converted; what in it, and what to do, is in the message.
        SampleError, MetricError: the samples are not such as the model takes, or the metric needs others.
        EngineError: the engine refuses the file.
        MissingExtraError: a library is not installed.
    """
    asked = wanted or Wanted()
    model = _read(what, asked)
    try:
        check_name(model.name, "model")
    except ProtocolError as error:
        raise ModelFileError(f"{error}; give another with --name") from error
    if model.labels and model.task == "classification" and model.outputs[0].shape[-1] not in (-1, len(model.labels)):
        raise ModelFileError(
            f"{len(model.labels)} labels were given; the model has {model.outputs[0].shape[-1]} classes"
        )
    _check_classes(model)
    return model


def _check_classes(model: Model) -> None:
    """Refuse labels that name classes which the only output does not have."""
    if model.metric != "top1" or model.y is None or len(model.outputs) != 1 or not model.y.size:
        return
    shape, most = model.outputs[0].shape, int(model.y.max())
    if len(shape) > 1 and shape[-1] > 1 and most >= math.prod(shape[1:]) > 1:
        raise SampleError(
            f"the labels `y` name the class {most}; the model's output {model.outputs[0].name!r} has the classes 0 to "
            f"{math.prod(shape[1:]) - 1}"
        )


def _read(what: str, wanted: Wanted) -> Model:
    path = Path(what)
    if path.is_dir() or path.name == RUN_FILE or (not path.suffix and ":" not in what):
        from edgewise_converter.sources.run import read as read_run

        if not path.exists():
            raise RunError(f"{what} does not exist: {_WHAT}")
        return read_run(path.parent if path.name == RUN_FILE else path, wanted)
    if path.suffix in (".onnx", ".tflite"):
        from edgewise_converter.sources.model_file import read as read_file

        return read_file(path, wanted)
    if path.suffix == ".pt2":
        from edgewise_converter.sources.exported import read as read_exported

        return read_exported(path, wanted)
    if ":" in what and not path.exists():
        from edgewise_converter.sources.factory import read as read_factory

        return read_factory(what, wanted)
    raise ModelFileError(f"{what} is no model: {_WHAT}")
