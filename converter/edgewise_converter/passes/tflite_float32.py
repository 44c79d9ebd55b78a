"""A finished TFLite file to plain float32.

Constants that are stored as float16 or sparsely become dense float32 ones (a larger file that loads
and runs without the work of unfolding them), activations move into the operators before them, and
metadata and the names of inner tensors go. The answers stay the same, to the bit. Weights that are
int8 while activations are float become float32 too; the answers then lose the noise of quantizing
activations.
"""

from __future__ import annotations

from edgewise_converter.errors import ModelFileError, PassError, UnchangedError
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.tflite_catalogue import TfliteFloat32Config
from edgewise_converter.passes.tflite_quantizing import make_plain
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.writing import write


def apply(materials: Materials, before: Artifact, config: TfliteFloat32Config) -> Artifact:
    """Make the file plain.

    Raises:
        UnchangedError: it is plain already, or quantized.
        PassError: it cannot be read.
    """
    try:
        model = read(before.data, materials.model)
        make_plain(model, materials.model, widen=True)
        data = write(model)
    except ModelFileError as error:
        raise PassError(f"{materials.model} cannot be made plain float32: {error}") from error
    if data == before.data:
        raise UnchangedError(
            f"tflite_float32 changed nothing in {materials.model}: it looks for float16, int8 and sparse "
            "constants, activations of their own, metadata and names of inner tensors"
        )
    return Artifact(data, "tflite", "float32")
