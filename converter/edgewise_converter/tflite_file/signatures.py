"""Names by which a file's inputs and outputs are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgewise_converter.errors import ModelFileError
from edgewise_converter.libraries import need

SERVING: Final = b"serving_default"


def sign(model: Any) -> None:
    """Give a file without a signature one of its tensors' names, made unique; the model (`ModelT`) is changed.

    Raises:
        ModelFileError: it has several signatures, or one of another graph than the first.
    """
    if len(model.signatureDefs or ()) > 1:
        keys = ", ".join(sorted(bytes(s.signatureKey or b"").decode("utf-8", "replace") for s in model.signatureDefs))
        raise ModelFileError(
            f"the file has {len(model.signatureDefs)} signatures ({keys[:200]}); export one with a single signature"
        )
    if model.signatureDefs:
        if model.signatureDefs[0].subgraphIndex != 0:
            raise ModelFileError("the file's signature is not of its first graph; export it with one graph to call")
        return
    schema = need("ai_edge_litert.schema_py_generated")
    graph = model.subgraphs[0]

    def entries(indices: Any, what: str) -> list[Any]:
        taken: set[bytes] = set()
        found = []
        for place, index in enumerate(indices):
            name = bytes(graph.tensors[index].name or b"") or f"{what}_{place}".encode()
            name = name if name not in taken else name + f"_{place}".encode()
            taken.add(name)
            found.append(schema.TensorMapT(name=name, tensorIndex=int(index)))
        return found

    model.signatureDefs = [
        schema.SignatureDefT(
            inputs=entries(graph.inputs, "input"),
            outputs=entries(graph.outputs, "output"),
            signatureKey=SERVING,
            subgraphIndex=0,
        )
    ]


def input_names(model: Any) -> dict[int, str]:
    """Names of the main graph's inputs by tensor, of a signed model."""
    return _names(model.signatureDefs[0].inputs)


def output_names(model: Any) -> dict[int, str]:
    """Names of the main graph's outputs by tensor, of a signed model."""
    return _names(model.signatureDefs[0].outputs)


def rename(model: Any, names: Mapping[str, str]) -> None:
    """Call inputs and outputs of a signed model otherwise; names that are not in the mapping stay."""
    signature = model.signatureDefs[0]
    for entry in (*signature.inputs, *signature.outputs):
        old = bytes(entry.name).decode()
        entry.name = names.get(old, old).encode()


def _names(entries: Any) -> dict[int, str]:
    return {int(entry.tensorIndex): bytes(entry.name).decode("utf-8", "replace") for entry in entries or ()}
