"""The JSON of a program, held to torch's own schema, and every text in it to what may stand there.

Torch makes Python source of a graph: names become variables, paths of weights attributes, keys of inputs parts of
guards. A text that is none of these would be run.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import keyword
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgewise_converter.program_file.expressions import SYMBOL, check_expression, check_guard
from edgewise_converter.program_file.harm import DamageError, HarmError
from edgewise_converter.program_file.operators import check_operator, is_symbolic

_MOST_JSON_BYTES: Final = 256 << 20
_NAME: Final = re.compile(r"[A-Za-z_]\w{0,500}", re.ASCII)
_PATH: Final = re.compile(r"[\w.\-/:@ ]{0,1000}", re.ASCII)
PLAIN: Final = re.compile(r"[\w.,:;+\-/@#&() ]{0,1000}", re.ASCII)
"""Texts without quotes, escapes and ends of lines: they may stand between quotes in source."""
_SIZE: Final = re.compile(r"[\w.,*+\-/() ]{1,20000}", re.ASCII)
_LINES: Final = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]{0,1000000}")
_RESERVED: Final = frozenset(("torch", "self", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree", "args"))
_REFUSED: Final = frozenset(
    ("CustomObjArgument", "InputToCustomObjSpec", "TokenArgument", "InputTokenSpec", "OutputTokenSpec")
)
_TREES: Final = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "torch.Size")
_DEEPEST_TREE: Final = 50
_INTEGERS: Final = range(-(1 << 63), 1 << 64)

Rule = Callable[[str], None]


def parse(data: bytes, what: str) -> Any:
    """Read a JSON file as torch does.

    Raises:
        DamageError: it is none, or too long.
    """
    if len(data) > _MOST_JSON_BYTES:
        raise DamageError(f"{what} has {len(data)} bytes; at most {_MOST_JSON_BYTES} are read")
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{what} is no JSON: {error}") from error


def check_document(torch: Any, kind: str, document: Any) -> None:
    """Hold a document to a class of torch's schema, such as `ExportedProgram`.

    Raises:
        HarmError: a text in it would be run, or names what runs code.
        DamageError: it is not of the schema.
    """
    from torch._export.serde import schema

    try:
        _Reader(torch, schema).check(getattr(schema, kind), document, kind)
    except RecursionError as error:
        raise DamageError("it is nested too deeply") from error


def is_name(text: str) -> bool:
    """Whether it may be a variable of the source that torch makes."""
    return bool(_NAME.fullmatch(text)) and not (keyword.iskeyword(text) or text in _RESERVED or text.startswith("__"))


@dataclass(frozen=True, slots=True)
class _Reader:
    torch: Any
    schema: types.ModuleType

    def check(self, kind: Any, value: Any, where: str) -> None:
        """Hold a value to a type of the schema; `where` is the field that it stands in, `Class.field`."""
        origin, parts = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            if value is not None:
                self.check(next(part for part in parts if part is not type(None)), value, where)
        elif origin is list:
            for item in _as(list, value, where):
                self.check(parts[0], item, where)
        elif origin is dict:
            for key, item in _as(dict, value, where).items():
                self.text(f"{where}:keys", key)
                self.check(parts[1], item, where)
        elif dataclasses.is_dataclass(kind):
            self.fields(kind, _as(dict, value, where), where)
        elif isinstance(kind, type) and issubclass(kind, enum.Enum):
            _as(int, value, where)
        elif kind is float:
            if value not in ("Infinity", "-Infinity", "NaN"):
                _as((int, float), value, where)
        elif kind is str:
            self.text(where, _as(str, value, where))
        elif kind is int:
            if _as(int, value, where) not in _INTEGERS:
                raise DamageError(f"a number of {where} is too large")
        elif kind is bool:
            _as(bool, value, where)
        else:
            raise DamageError(f"{where} is of a kind that is not known")

    def fields(self, kind: Any, value: Mapping[str, Any], where: str) -> None:
        if kind.__name__ in _REFUSED:
            raise HarmError(f"an object of a class of its own ({where})")
        hints = typing.get_type_hints(kind, globalns=vars(self.schema))
        if issubclass(kind, self.schema._Union) and len(value) != 1:
            raise DamageError(f"{where} is not one of a kind")
        for key, item in value.items():
            if key not in hints:
                raise DamageError(f"{where} has a field {key[:40]!r} that is not known")
            self.check(hints[key], item, f"{kind.__name__}.{key}")
        if kind.__name__ == "Node":
            _check_node(value)
        elif kind.__name__ in ("Graph", "ModuleCallSignature"):
            _check_constants(value)

    def text(self, where: str, value: str) -> None:
        rule = _RULES.get(where)
        if where in ("Node.target", "Argument.as_operator"):
            check_operator(self.torch, value)
        elif rule is not None:
            rule(value)
        elif not _PATH.fullmatch(value) or any(part.startswith("__") for part in value.split(".")):
            raise HarmError(f"the name {value[:80]!r} ({where})")


def _as(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DamageError(f"{where} is not of its kind")
    return value


def _check_node(node: Mapping[str, Any]) -> None:
    """A text as a number of sizes would be repeated, or formatted, by the arithmetic on it."""
    if is_symbolic(str(node.get("target"))) and "autocast" not in node["target"]:
        for argument in node.get("inputs", ()):
            if {"as_string", "as_strings"} & set(argument.get("arg", ())):
                raise HarmError(f"a call of {node['target']!r} with a text")


def _check_constants(graph: Mapping[str, Any]) -> None:
    """Constant inputs become parts of guards."""
    for argument in (*graph.get("inputs", ()), *graph.get("outputs", ())):
        text = argument.get("as_string")
        if text is not None and not PLAIN.fullmatch(text):
            raise HarmError(f"the constant {text[:80]!r}")


def _name(text: str) -> None:
    if not is_name(text):
        raise HarmError(f"the name {text[:80]!r}")


def _name_or_none(text: str) -> None:
    if text:
        _name(text)


def _argument(text: str) -> None:
    """Names of an operator's arguments, which its schema gives: `self` and `from` are among them."""
    if text and (not _NAME.fullmatch(text) or text.startswith("__")):
        raise HarmError(f"the name {text[:80]!r}")


def _size(text: str) -> None:
    """Key of a range, which torch looks up; of symbols not bound to an input it counts up to the number."""
    if not (SYMBOL if text.startswith(("u", "zuf")) else _SIZE).fullmatch(text):
        raise HarmError(f"the symbol {text[:80]!r}")


def _plain(text: str) -> None:
    if not PLAIN.fullmatch(text):
        raise HarmError(f"the constant {text[:80]!r}")


def _lines(text: str) -> None:
    if not _LINES.fullmatch(text):
        raise HarmError(f"the note {text[:80]!r}")


def _tree(text: str) -> None:
    try:
        protocol, tree = json.loads(text)
        if protocol != 1:
            raise ValueError
        _branch(tree, _DEEPEST_TREE)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise HarmError(f"the structure {text[:80]!r}") from error


def _branch(tree: Any, deepest: int) -> None:
    """A context of another form makes torch import what it names."""
    kind, context = tree["type"], tree["context"]
    if not deepest or set(tree) != {"type", "context", "children_spec"} or not isinstance(tree["children_spec"], list):
        raise ValueError
    if kind is not None or context is not None:
        keys = json.loads(context)
        if kind not in _TREES or (kind.endswith("ict") != isinstance(keys, list)):
            raise ValueError
        if keys is not None and not all(is_key(key) for key in keys):
            raise ValueError
    for child in tree["children_spec"]:
        _branch(child, deepest - 1)


def is_key(key: object) -> bool:
    """Whether it may be a key among a program's inputs or outputs."""
    return type(key) is int or (isinstance(key, str) and bool(_PATH.fullmatch(key)) and not key.startswith("__"))


_RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(
        (
            "TensorArgument.name",
            "GraphArgument.name",
            "SymIntArgument.as_name",
            "SymFloatArgument.as_name",
            "SymBoolArgument.as_name",
            "InputToConstantInputSpec.name",
            "ModuleCallSignature.forward_arg_names",
            *(f"Graph.{kind}_values:keys" for kind in ("tensor", "sym_int", "sym_float", "sym_bool", "custom_obj")),
        ),
        _name,
    ),
    "Node.name": _name_or_none,
    "NamedArgument.name": _argument,
    "SymExpr.expr_str": check_expression,
    "ExportedProgram.guards_code": check_guard,
    "ExportedProgram.range_constraints:keys": _size,
    "ExportedProgram.torch_version": _lines,
    "ConstantValue.as_string": _plain,
    "Argument.as_string": _lines,
    "Argument.as_strings": _lines,
    "Node.metadata": _lines,
    "GraphModule.metadata": _lines,
    "ModuleCallSignature.in_spec": _tree,
    "ModuleCallSignature.out_spec": _tree,
}
