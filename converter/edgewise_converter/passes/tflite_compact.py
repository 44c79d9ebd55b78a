"""A finished TFLite file of any precision, without what no engine needs.

Metadata, descriptions, names of inner tensors, unused tensors and repeated lists go; the graph and
its constants stay as they are, so that the answers are the same, to the bit.
"""

from __future__ import annotations

from edgewise_converter.errors import ModelFileError, PassError, UnchangedError
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.tflite_catalogue import TfliteCompactConfig
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.signatures import sign
from edgewise_converter.tflite_file.writing import write


def apply(materials: Materials, before: Artifact, config: TfliteCompactConfig) -> Artifact:
    """Write the file anew.

    Raises:
        UnchangedError: it is no smaller then.
        PassError: it cannot be read.
    """
    try:
        model = read(before.data, materials.model)
        sign(model)
        data = write(model)
    except ModelFileError as error:
        raise PassError(f"{materials.model} cannot be written anew: {error}") from error
    if len(data) >= len(before.data):
        raise UnchangedError(
            f"tflite_compact gains nothing on {materials.model}: it looks for metadata, names of inner tensors, "
            "unused tensors and lists that repeat"
        )
    return Artifact(data, "tflite", before.precision)
