"""Whether a file from outside may come in: sound as data, built of operators that LiteRT has, and run once apart."""

from __future__ import annotations

from edgewise_converter.errors import ModelFileError
from edgewise_converter.tflite_file.operators import foreign
from edgewise_converter.tflite_file.probe import probe
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.traps import trapping


def admit(data: bytes, name: str) -> None:
    """Hold an outside file against all of it, the cheapest first. Only then may it be loaded in this process.

    Raises:
        ModelFileError: what is wrong with it, where, and what to do.
    """
    model = read(data, name)
    if strange := foreign(model):
        kind = "one of TensorFlow's own (SELECT_TF_OPS)" if strange[0].flex else "a custom operator"
        more = f", and {len(strange) - 1} more are not built in" if len(strange) > 1 else ""
        raise ModelFileError(
            f"{name} holds {strange[0].place}, {kind} that devices' LiteRT does not have{more}: export the model with "
            "built-in operators alone"
        )
    if trap := trapping(model):
        raise ModelFileError(
            f"{name} holds {trap.place} of whole numbers, by a divisor that may be -1, on which processors end the "
            "process: export the model with a constant divisor, or on real numbers"
        )
    probe(data, name)
