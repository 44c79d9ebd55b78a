"""Why a conversion ends without a bundle: one tree, each class with a stable `code`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class ConverterError(Exception):
    """A model was not converted."""

    code = "converter"


class MissingExtraError(ConverterError):
    """A library that the work needs is not installed; the message names the extra."""

    code = "converter-missing-extra"


class RunError(ConverterError):
    """The run directory is incomplete, damaged, or not of a form that can be converted."""

    code = "run-damaged"


class RunVersionError(RunError):
    """The run's record is of a major version that this converter does not know."""

    code = "run-version"


class SamplesError(RunError):
    """Calibration or held-out samples are of the wrong shape or type, or hold NaN or infinity."""

    code = "run-samples"


class GateError(ConverterError):
    """The training run did not pass its acceptance gate, so it is not converted."""

    code = "run-gate"


class PassError(ConverterError):
    """An export or quantization failed, or gave a model that breaks the contract."""

    code = "pass"


class UnchangedError(PassError):
    """A pass found nothing in the model that it changes; the message says what it looks for."""

    code = "pass-unchanged"


class ModelFileError(ConverterError):
    """A finished model file cannot be bundled: what in it, and what to do, is in the message."""

    code = "model-file"


class SampleError(ConverterError):
    """The sample of a finished model's inputs is not one that it takes."""

    code = "sample"


class MetricError(ConverterError):
    """A metric is unknown, or labels or outputs are not of the kind that it needs."""

    code = "metric"


class ScoresError(MetricError):
    """A file of scores cannot be read, or is not one."""

    code = "metric-scores"


class EngineError(ConverterError):
    """An inference engine refuses the converted model, or fails on it."""

    code = "engine"


class WriteError(ConverterError):
    """The bundle or its report cannot be written."""

    code = "write"


class ProofError(ConverterError):
    """The golden inputs could not be run on the target's instruction set."""

    code = "proof"


class NoEmulationError(ProofError):
    """No emulator has what the profile's processor has, or the host cannot run the bundle's engine."""

    code = "proof-no-emulation"


class NotPreparedError(ProofError):
    """The profile's sysroot has not been built on this machine."""

    code = "proof-not-prepared"


class ProofToolsError(ProofError):
    """A program that builds or runs sysroots is not installed, or may not be run by this user."""

    code = "proof-tools"


class SysrootError(ProofError):
    """A sysroot cannot be built, or has been damaged."""

    code = "proof-sysroot"


class ProofMissingError(ProofError):
    """A bundle must be proven before it is written, and was not: it failed, or could not be run."""

    code = "proof-missing"
