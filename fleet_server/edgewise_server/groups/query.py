"""A small language over device facts, for groups that follow the fleet.

    query      = or
    or         = and { "or" and }
    and        = not { "and" not }
    not        = [ "not" ] ( "(" or ")" | comparison )
    comparison = field ( "==" | "!=" | "<" | "<=" | ">" | ">=" ) value | field "in" "(" value { "," value } ")"

A value is a word or a text in quotes. Fields are named in `FIELDS`, or `engine.<name>`.
`==` on a list field (compatible, cpu_features) means that the list contains the value.
`<` and its kin compare numbers on number fields and dotted versions on `agent_version`
and `engine.<name>`; other fields refuse them. A comparison with a fact that a device does
not have is false, `!=` included.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgewise_protocol.facts import version_tuple

from edgewise_server.errors import QueryError

MAX_QUERY_CHARS: Final = 500
MAX_TOKENS: Final = 128
MAX_DEPTH: Final = 8

TEXTS: Final = frozenset({"id", "channel", "machine", "os"})
LISTS: Final = frozenset({"compatible", "cpu_features"})
NUMBERS: Final = frozenset({"cpu_count", "memory_mib", "storage_free_mib"})
FLAGS: Final = frozenset({"simulated", "online"})
VERSIONS: Final = frozenset({"agent_version"})
FIELDS: Final = TEXTS | LISTS | NUMBERS | FLAGS | VERSIONS
ENGINE: Final = "engine."

Facts = Mapping[str, Any]
Predicate = Callable[[Facts], bool]

_TOKEN: Final = re.compile(r'\s*(?:(==|!=|<=|>=|<|>|\(|\)|,)|"([^"]{0,200})"|([A-Za-z0-9][A-Za-z0-9._+-]*))')
_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WORDS: Final = frozenset({"and", "or", "not", "in"})


@dataclass(frozen=True)
class _Token:
    kind: str
    """`sign`, `text` (quoted) or `word`."""
    value: str


def parse(query: str) -> Predicate:
    """Compile a query to a predicate over facts (see `facts_for_query`).

    Raises:
        QueryError: it is too long, malformed, or names an unknown field.
    """
    parser = _Parser(_tokens(query))
    predicate = parser.alternatives(0)
    parser.expect_end()
    return predicate


def _tokens(query: str) -> list[_Token]:
    if not query.strip():
        raise QueryError("the query is empty")
    if len(query) > MAX_QUERY_CHARS:
        raise QueryError(f"the query has more than {MAX_QUERY_CHARS} characters")
    found: list[_Token] = []
    position = 0
    while query[position:].strip():
        match = _TOKEN.match(query, position)
        if match is None:
            raise QueryError(f"the query cannot be read at {query[position : position + 20]!r}")
        sign, text, word = match.groups()
        found.append(_Token("sign", sign) if sign else _Token("word", word) if word else _Token("text", text))
        position = match.end()
        if len(found) > MAX_TOKENS:
            raise QueryError(f"the query has more than {MAX_TOKENS} words and signs")
    return found


class _Parser:
    """Recursive descent over the tokens; the depth is bounded."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def alternatives(self, depth: int) -> Predicate:
        parts = [self._conjunction(depth)]
        while self._accept("or"):
            parts.append(self._conjunction(depth))
        return lambda facts: any(part(facts) for part in parts)

    def expect_end(self) -> None:
        if self._at < len(self._tokens):
            raise QueryError(f"the query goes on after its end: {self._tokens[self._at].value!r}")

    def _conjunction(self, depth: int) -> Predicate:
        parts = [self._negation(depth)]
        while self._accept("and"):
            parts.append(self._negation(depth))
        return lambda facts: all(part(facts) for part in parts)

    def _negation(self, depth: int) -> Predicate:
        if self._accept("not"):
            inner = self._term(depth)
            return lambda facts: not inner(facts)
        return self._term(depth)

    def _term(self, depth: int) -> Predicate:
        if self._accept("("):
            if depth >= MAX_DEPTH:
                raise QueryError(f"the query nests deeper than {MAX_DEPTH}")
            inner = self.alternatives(depth + 1)
            self._demand(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Predicate:
        field = self._next("a field").value
        if field not in FIELDS and not (field.startswith(ENGINE) and len(field) > len(ENGINE)):
            raise QueryError(f"{field!r} is not a field; there are {', '.join(sorted(FIELDS))} and engine.<name>")
        if self._accept("in"):
            self._demand("(")
            choices = [self._value()]
            while self._accept(","):
                choices.append(self._value())
            self._demand(")")
            tests = [_compare(field, "==", choice) for choice in choices]
            return lambda facts: any(test(facts) for test in tests)
        sign = self._next("an operator")
        if sign.kind != "sign" or sign.value in "(),":
            raise QueryError(f"after {field!r} an operator is expected, not {sign.value!r}")
        return _compare(field, sign.value, self._value())

    def _value(self) -> str:
        token = self._next("a value")
        if token.kind == "sign" or (token.kind == "word" and token.value in _WORDS):
            raise QueryError(f"a value is expected, not {token.value!r}")
        return token.value

    def _next(self, what: str) -> _Token:
        if self._at >= len(self._tokens):
            raise QueryError(f"the query ends where {what} is expected")
        self._at += 1
        return self._tokens[self._at - 1]

    def _accept(self, value: str) -> bool:
        here = self._tokens[self._at] if self._at < len(self._tokens) else None
        if here is None or here.kind == "text" or here.value != value:
            return False
        self._at += 1
        return True

    def _demand(self, value: str) -> None:
        if not self._accept(value):
            raise QueryError(f"the query lacks {value!r}")


def _compare(field: str, sign: str, value: str) -> Predicate:
    if sign in _ORDERS:
        return _ordered(field, _ORDERS[sign], value)
    wanted = _typed(field, value)

    def equal(facts: Facts) -> bool:
        have = facts.get(field)
        if have is None:
            return False
        same = wanted in have if field in LISTS else have == wanted
        return same if sign == "==" else not same

    return equal


def _ordered(field: str, order: Callable[[Any, Any], bool], value: str) -> Predicate:
    if field in NUMBERS:
        number = _typed(field, value)
        return lambda facts: facts.get(field) is not None and order(facts[field], number)
    if field in VERSIONS or field.startswith(ENGINE):
        version = version_tuple(value)
        if not version:
            raise QueryError(f"{value!r} is not a version")
        return lambda facts: facts.get(field) is not None and order(version_tuple(facts[field]), version)
    raise QueryError(f"{field!r} has no order; use == or !=")


def _typed(field: str, value: str) -> str | int | bool:
    if field in FLAGS:
        if value not in ("true", "false"):
            raise QueryError(f"{field!r} is true or false, not {value!r}")
        return value == "true"
    if field in NUMBERS:
        if not re.fullmatch(r"[0-9]{1,15}", value):
            raise QueryError(f"{field!r} is a whole number, not {value!r}")
        return int(value)
    return value
