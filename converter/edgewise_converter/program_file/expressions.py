"""Sizes and guards of a program: the arithmetic that torch writes, and nothing else that Python would evaluate.

Torch hands an expression to sympy, which evaluates it as Python, and compiles guards. Both must be of a small
grammar, and of a size that evaluating, and multiplying out, cannot blow up.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from edgewise_converter.program_file.harm import HarmError

SYMBOL: Final = re.compile(r"[a-zA-Z_]{1,16}[0-9]{1,5}")
_MOST_CHARACTERS: Final = 20_000
_DEEPEST: Final = 60
_MOST_DIGITS: Final = 20
_HIGHEST_POWER: Final = 8
_MOST_TERMS: Final = 1024
_MOST_BITS: Final = 4096
_MOST_COMPARED: Final = 64
"""Terms under one minimum, maximum, or join of conditions: sympy compares each with each."""
_TEXT: Final = re.compile(r"[\w.\- ]{1,200}", re.ASCII)
_ASSUMPTION: Final = re.compile(r"[a-z_]{1,24}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}(\.[0-9]{0,40})?(e[-+]?[0-9]{1,3})?")
_CONSTANTS: Final = ("true", "false", "True", "False", "oo", "int_oo")
_POWERS: Final = ("Pow", "PowByNatural", "FloatPow", "LShift", "RShift")
_COMPARED: Final = ("Min", "Max", "And", "Or", "Xor", "Not", "Piecewise", "ExprCondPair", "Where")
_PLAIN_NAMES: Final = """
Add Mul Mod Abs floor ceiling sign Eq Ne Le Lt Ge Gt Equality Unequality StrictLessThan LessThan StrictGreaterThan
GreaterThan Tuple FloorDiv ModularIndexing PythonMod CleanDiv CeilToInt FloorToInt CeilDiv FloatTrueDiv IntTrueDiv
IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity
"""
_PLAIN: Final = frozenset(_PLAIN_NAMES.split())
_GUARD_NAMES: Final = """
int float bool abs max min round math.floor math.ceil math.trunc math.sqrt math.isnan torch.sym_int torch.sym_float
torch.sym_max torch.sym_min torch.sym_not torch.sym_ite torch.sym_sqrt torch._sym_sqrt
IsNonOverlappingAndDenseIndicator cast_symbool_to_symint_guardless
"""
_GUARD_CALLS: Final = frozenset(_GUARD_NAMES.split())
_OF_TENSORS: Final = ("size", "stride", "storage_offset", "dim", "numel", "shape", "ndim")


@dataclass(frozen=True, slots=True)
class _Cost:
    """Bounds of what evaluating comes to: terms when multiplied out, and bits of its numbers."""

    terms: int
    bits: int


_ATOM: Final = _Cost(1, 64)


def check_expression(text: str) -> None:
    """Hold a size or condition to what `sympy.srepr` writes of one.

    Raises:
        HarmError: it is anything else, or too large.
    """
    _check(text, _sympy_cost)


def check_guard(text: str) -> None:
    """Hold a guard to comparisons of sizes of the inputs.

    Raises:
        HarmError: it is anything else, or too large.
    """
    _check(text, _guard_cost)


def _check(text: str, cost: Callable[[ast.expr], _Cost]) -> None:
    try:
        if len(text) > _MOST_CHARACTERS or not text.isascii() or not text.isprintable() or _depth(text) > _DEEPEST:
            raise HarmError("too large")
        cost(ast.parse(text, mode="eval").body)
    except (HarmError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise HarmError(f"the shape expression {text[:80]!r}") from error


def _depth(text: str) -> int:
    deepest = now = 0
    for character in text:
        now += (character in "([{") - (character in ")]}")
        deepest = max(deepest, now)
    return deepest


def _sympy_cost(node: ast.expr) -> _Cost:
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _ATOM
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _sympy_cost(node.operand)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise HarmError("no call of sympy")
    name, arguments = node.func.id, node.args
    if name in ("Symbol", "Integer", "Rational", "Float"):
        return _leaf(name, arguments, node.keywords)
    if node.keywords or not arguments:
        raise HarmError("not as sympy writes it")
    if name in _POWERS:
        return _power(arguments, _sympy_cost)
    return _join(name, arguments, _sympy_cost)


def _leaf(name: str, arguments: Sequence[ast.expr], keywords: Sequence[ast.keyword]) -> _Cost:
    values = [_literal(a) for a in arguments]
    if name == "Symbol":
        fine = len(values) == 1 and isinstance(values[0], str) and bool(SYMBOL.fullmatch(values[0]))
        fine = fine and all(
            k.arg and _ASSUMPTION.fullmatch(k.arg) and type(_literal(k.value)) is bool for k in keywords
        )
    elif name == "Float":
        fine = len(values) == 1 and isinstance(values[0], str) and bool(_NUMBER.fullmatch(values[0]))
        fine = fine and all(k.arg == "precision" and _literal(k.value) == 53 for k in keywords)
    else:
        fine = len(values) == (2 if name == "Rational" else 1) and all(type(v) is int for v in values)
        fine = fine and not keywords and values[1:] != [0]
    if not fine:
        raise HarmError(f"an odd {name}")
    return _ATOM


def _literal(node: ast.expr) -> object:
    """Value of a number, truth or text; numbers are of a bounded length."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand)
        if not isinstance(value, (int, float)):
            raise HarmError("a sign without a number")
        return -value
    if not isinstance(node, ast.Constant) or not isinstance(node.value, (int, float, str)):
        raise HarmError("no plain value")
    if isinstance(node.value, int) and abs(node.value) >= 10**_MOST_DIGITS:
        raise HarmError("a number too long")
    return node.value


def _join(name: str, arguments: Sequence[ast.expr], cost: Callable[[ast.expr], _Cost]) -> _Cost:
    parts = [cost(a) for a in arguments]
    if name == "Mul":
        terms = 1
        for part in parts:
            terms *= part.terms
        return _bounded(terms, sum(part.bits for part in parts))
    terms = sum(part.terms for part in parts)
    if name in _COMPARED:
        if terms > _MOST_COMPARED:
            raise HarmError("too many terms to compare")
    elif name not in _PLAIN:
        raise HarmError(f"a call of {name}")
    return _bounded(terms, max(part.bits for part in parts) + len(parts))


def _power(arguments: Sequence[ast.expr], cost: Callable[[ast.expr], _Cost]) -> _Cost:
    """Cost of a power, whose exponent must be a small number."""
    if len(arguments) != 2:
        raise HarmError("an odd power")
    base, exponent = cost(arguments[0]), arguments[1]
    if isinstance(exponent, ast.Call):
        if not isinstance(exponent.func, ast.Name) or exponent.func.id not in ("Integer", "Rational", "Float"):
            raise HarmError("a power without a number")
        cost(exponent)
        values = [_literal(a) for a in exponent.args]
    else:
        values = [_literal(exponent)]
    try:
        highest = max(abs(float(str(value))) for value in values)
    except ValueError as error:
        raise HarmError("a power without a number") from error
    if not highest <= _HIGHEST_POWER:
        raise HarmError("a power too high")
    times = max(1, int(highest))
    return _bounded(base.terms**times, base.bits * times)


def _bounded(terms: int, bits: int) -> _Cost:
    if terms > _MOST_TERMS or bits > _MOST_BITS:
        raise HarmError("too large")
    return _Cost(terms, bits)


def _guard_cost(node: ast.expr) -> _Cost:
    if isinstance(node, ast.Compare):
        return _join("And", [node.left, *node.comparators], _guard_cost)
    if isinstance(node, ast.BoolOp):
        return _join("And", node.values, _guard_cost)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        return _guard_cost(node.operand)
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, (ast.Pow, ast.LShift, ast.RShift)):
            return _power([node.left, node.right], _guard_cost)
        if not isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div, ast.Mod)):
            raise HarmError("an odd sign")
        return _join("Mul" if isinstance(node.op, ast.Mult) else "Add", [node.left, node.right], _guard_cost)
    if isinstance(node, ast.Call) and _dotted(node.func) in _GUARD_CALLS:
        if node.keywords or not node.args:
            raise HarmError("an odd call")
        return _join("And", node.args, _guard_cost)
    if isinstance(node, ast.Constant) and not isinstance(node.value, str):
        _literal(node)
        return _ATOM
    if (isinstance(node, ast.Name) and node.id == "inf") or _dotted(node) in ("math.inf", "math.nan"):
        return _ATOM
    _check_input(node)
    return _ATOM


def _check_input(node: ast.expr) -> None:
    """Hold a path to one of an input, or of a size of it: `L['x']`, `L['x'][0].size()[1]`."""
    while not (isinstance(node, ast.Name) and node.id == "L"):
        if isinstance(node, ast.Subscript):
            key = _literal(node.slice)
            if type(key) is not int and not (isinstance(key, str) and _TEXT.fullmatch(key)):
                raise HarmError("an odd key")
            node = node.value
        elif isinstance(node, ast.Call) and not node.args and not node.keywords:
            node = node.func
            if not isinstance(node, ast.Attribute):
                raise HarmError("an odd call")
        elif isinstance(node, ast.Attribute) and node.attr in _OF_TENSORS:
            node = node.value
        else:
            raise HarmError("no size of an input")


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
