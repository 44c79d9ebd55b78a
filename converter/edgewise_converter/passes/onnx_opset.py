"""The same graph in another operator set and IR version, newer or older."""

from __future__ import annotations

from typing import Any, Final

from edgewise_converter.errors import PassError, UnchangedError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.onnx_answers import hold_same
from edgewise_converter.passes.onnx_catalogue import OnnxOpsetConfig
from edgewise_converter.passes.onnx_graph import canonical
from edgewise_converter.passes.onnx_scopes import STANDARD, load, opset, scopes

_NAME: Final = "onnx_opset"


def apply(materials: Materials, before: Artifact, config: OnnxOpsetConfig) -> Artifact:
    """Convert a graph, and hold that it answers as before.

    Raises:
        UnchangedError: it is of that operator set already, and of no newer IR version.
        PassError: an operator of it does not exist there, or not in this form; or the answers change.
    """
    model = load(before.data, materials.model)
    if opset(model) == config.opset and model.ir_version <= config.ir_version:
        raise UnchangedError(
            f"{_NAME} changed nothing: it looks for another operator set than {config.opset}, "
            f"or a newer IR version than {config.ir_version}"
        )
    if opset(model) != config.opset:
        model = convert(model, config.opset)
    model.ir_version = min(model.ir_version, config.ir_version)
    data = canonical(model, materials.input_names, materials.output_names)
    hold_same(before.data, data, materials.calibration, f"{materials.model} in operator set {config.opset}")
    return Artifact(data, before.format, before.precision)


def at_least(model: Any, wanted: int) -> Any:
    """The model, lifted where its operator set is older.

    Raises:
        PassError: an operator of it cannot be lifted.
    """
    return model if opset(model) >= wanted else convert(model, wanted)


def convert(model: Any, wanted: int) -> Any:
    """A model in another operator set.

    Raises:
        PassError: an operator does not exist there, or not in this form: which, and where.
    """
    onnx = need("onnx")
    found = opset(model)
    _hold_known(onnx, model, wanted)
    if _same_there(onnx, model, wanted):
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        for item in copy.opset_import:
            if item.domain in STANDARD:
                item.version = wanted
        return copy
    try:
        with quietly():
            return onnx.version_converter.convert_version(model, wanted)
    except Exception as error:
        changed = _changed(onnx, model, wanted)
        raise PassError(
            f"operator set {found} cannot be turned into {wanted}: {', '.join(changed[:5])} changed between the two, "
            f"and onnx knows no way ({str(error).splitlines()[0][-160:]})"
        ) from error


def _hold_known(onnx: Any, model: Any, wanted: int) -> None:
    for scope in scopes(model):
        for node in scope.graph.node:
            if node.domain in STANDARD and _schema(onnx, node, wanted) is None:
                raise PassError(
                    f"the operator {node.op_type} (node {node.name or node.output[0]!r}) does not exist in operator "
                    f"set {wanted}: export with operator set {wanted}, or take a board whose engine reads "
                    f"{opset(model)}"
                )


def _same_there(onnx: Any, model: Any, wanted: int) -> bool:
    """Whether every node is of one and the same version in both sets, or of one that only took further types on."""
    return not _changed(onnx, model, wanted)


def _changed(onnx: Any, model: Any, wanted: int) -> list[str]:
    """Operators whose definition is another in the wanted set, with their nodes."""
    found = opset(model)
    names = []
    for scope in scopes(model):
        for node in scope.graph.node:
            if node.domain not in STANDARD:
                continue
            here, there = _schema(onnx, node, found), _schema(onnx, node, wanted)
            if here is None or not _alike(node, here, there):
                names.append(f"{node.op_type} (node {node.name or node.output[0]!r})")
    return names


def _alike(node: Any, one: Any, other: Any) -> bool:
    """Whether a node means the same by two versions of its operator, which may differ in types."""
    if one.since_version == other.since_version:
        return True
    if (one.name, min(one.since_version, other.since_version)) in _NEW_MEANING:
        return False
    attributes = set(one.attributes) & set(other.attributes)
    defaults = [(str(one.attributes[a].default_value), str(other.attributes[a].default_value)) for a in attributes]
    shared = min(len(one.inputs), len(other.inputs))
    places = [(i.name, i.option) for i in list(one.inputs)[:shared]] == [
        (i.name, i.option) for i in list(other.inputs)[:shared]
    ]
    many = shared and one.inputs[shared - 1].option == one.inputs[shared - 1].option.Variadic
    return bool(
        places
        and (many or not any(list(node.input)[shared:]))
        and len(node.output) <= max(min(len(one.outputs), len(other.outputs)), 1 if not many else len(node.output))
        and all(a == b for a, b in defaults)
        and {a.name for a in node.attribute} <= attributes
    )


_NEW_MEANING: Final = frozenset({("Softmax", 11), ("LogSoftmax", 11), ("Hardmax", 11), ("BatchNormalization", 9)})
"""Versions after which an operator of the same form gives other answers."""


def _schema(onnx: Any, node: Any, version: int) -> Any | None:
    try:
        return onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return None
