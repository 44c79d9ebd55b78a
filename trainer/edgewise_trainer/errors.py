"""The error tree of the trainer. Each class carries a stable `code`; codes are never reused."""

from __future__ import annotations


class TrainerError(Exception):
    """Something that the operator can act on went wrong in training, evaluation or export."""

    code = "trainer"


class ConfigError(TrainerError):
    """The run configuration is not valid; the message names the key."""

    code = "config"


class FactoryError(TrainerError):
    """A `module:function` cannot be imported, called, or gave something of the wrong type."""

    code = "factory"


class DataError(TrainerError):
    """A data set cannot be read, or its arrays break the contract."""

    code = "data"


class TrainingError(TrainerError):
    """Training did not give a usable model, e.g. the loss is not finite."""

    code = "training"


class WeightsError(TrainerError):
    """Weights do not fit the model: a name, shape or data type differs, or a value is not finite."""

    code = "weights"


class ExportError(TrainerError):
    """A model or its training step cannot be exported."""

    code = "export"


class GraphGateError(ExportError):
    """An exported training step failed one of its gates and was refused."""

    code = "training-graph-refused"


class RunError(TrainerError):
    """A run directory cannot be written or read."""

    code = "run"


class RunExistsError(RunError):
    """The run directory already exists; runs are never overwritten."""

    code = "run-exists"


class RunTamperedError(RunError):
    """A file of the run directory is missing, was added, or does not have the recorded digest."""

    code = "run-tampered"


class MissingExtraError(TrainerError):
    """An optional package is not installed; the message names the extra."""

    code = "missing-extra"
