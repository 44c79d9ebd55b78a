"""Writing a bundle that has proved itself: read back, loaded, and held against its golden outputs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from edgewise_protocol.bundle import BundleReader, sha256_of, write_bundle
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.golden import compare

from edgewise_converter import golden
from edgewise_converter.bundling import Contents
from edgewise_converter.engines.opening import open_artifact
from edgewise_converter.errors import EngineError, WriteError
from edgewise_converter.files import write_atomically
from edgewise_converter.passes.artifact import Artifact


def write_proven(path: Path, contents: Contents) -> tuple[str, int]:
    """Write a bundle, whole or not at all; one for inference answers its golden inputs first.

    Returns:
        its SHA-256 and its size in bytes.

    Raises:
        EngineError: it does not answer as it promises.
        WriteError: the disk refuses, or a bound of the bundle's format is exceeded.
    """
    buffer = io.BytesIO()
    try:
        write_bundle(buffer, contents.manifest, contents.files)
        check_bundle(buffer)
    except ProtocolError as error:
        raise WriteError(f"{path.name} would not be a bundle that opens: {error}") from error
    buffer.seek(0)
    digest, size = sha256_of(buffer)
    write_atomically(path, lambda out: out.write(buffer.getbuffer()))
    return digest, size


def check_bundle(source: BinaryIO, artifact: Artifact | None = None) -> None:
    """Open a bundle as a device does, check every digest, and run golden inputs afresh if it has any.

    Args:
        source: the bundle.
        artifact: its model, where a file does not name its tensors, or another stands in for it on this host.

    Raises:
        BundleError, MalformedError: it is damaged.
        EngineError: it does not answer as it promises.
    """
    reader = BundleReader(source)
    manifest = reader.verify()
    if manifest.golden is None:
        return
    inputs, wanted = golden.decode(reader.read(manifest.golden.file))
    if artifact is not None and artifact.data != reader.read(manifest.model_file):
        raise EngineError("the bundle holds another model file than was put into it")
    integers = frozenset(spec.name for spec in manifest.inputs if spec.dtype not in ("FP16", "FP32", "FP64"))
    if artifact is None:
        artifact = Artifact(reader.read(manifest.model_file), manifest.format, "float32")
    found = open_artifact(artifact, integers).infer(inputs)
    again = compare(manifest.golden, wanted, found)
    if not again.passed:
        raise EngineError(
            f"the model does not repeat its own golden outputs, the engine is not deterministic: {again.reason}"
        )
