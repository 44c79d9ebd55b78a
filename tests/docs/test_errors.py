"""Danger: a person reads an error code that no page explains, or a page explains one that no longer exists.

Codes are collected from the source of every room by where code can put one. No list is kept by hand:

- class attributes, keyword arguments and constants that are called so (`code`, `error_code`, `..._CODE`);
- arguments by position, for every function and class whose parameter or field is called so;
- results: functions that are called so, and tuples that are unpacked into such a name;
- tables called `..._CODES`, and defaults of `.get` on them and of `getattr(error, "code", ...)`;
- kinds of alerts, and answers to updates, which begin with their code and a colon.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from edgewise_agent.serving.answers import _STATUS as SERVING_STATUS
from edgewise_agent.words import WORDS
from edgewise_cli import errors as cli_errors
from edgewise_server.api.problems import STATUS

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "protocol/edgewise_protocol",
    "firmware_profiles/edgewise_profiles",
    "trainer/edgewise_trainer",
    "converter/edgewise_converter",
    "agent/edgewise_agent",
    "fleet_server/edgewise_server",
    "cli/edgewise_cli",
)
_CODE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*$")
_LED_BY_CODE = re.compile(r"([a-z][a-z0-9]*(?:-[a-z0-9]+)+): [a-z]")
_NAMES = frozenset({"code", "error_code"})
_ROW = re.compile(r"^\| `(?P<code>[a-z0-9-]+)` \| (?P<cause>[^|]+) \| (?P<mend>[^|]+) \|$", re.MULTILINE)
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_code_name(name: str) -> bool:
    return name in _NAMES or name == "CODE" or name.endswith("_CODE")


def names_of(node: ast.AST) -> set[str]:
    """The names that an assignment binds."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def value_of(node: ast.AST) -> ast.expr | None:
    """The value that an assignment binds."""
    return node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None


def called(node: ast.Call) -> str:
    """The last name of what is called."""
    return getattr(node.func, "id", "") or getattr(node.func, "attr", "")


def _parameters(function: _Function, *, method: bool) -> list[str]:
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    static = any(getattr(decorator, "id", "") == "staticmethod" for decorator in function.decorator_list)
    return names[1:] if method and not static else names


def places_in(trees: Iterable[ast.AST]) -> dict[str, set[int]]:
    """Where, among the arguments by position of what has a name, a code stands."""
    found: dict[str, set[int]] = defaultdict(set)

    def take(name: str, parameters: list[str]) -> None:
        found[name] |= {at for at, parameter in enumerate(parameters) if parameter in _NAMES}

    for tree in trees:
        methods: set[ast.AST] = set()
        for node in ast.walk(tree):  # a class is walked before what it holds
            if isinstance(node, ast.ClassDef):
                methods.update(node.body)
                made = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
                fields = [name for item in node.body if isinstance(item, ast.AnnAssign) for name in names_of(item)]
                take(node.name, _parameters(made[0], method=True) if made else fields)
            elif isinstance(node, _Function):
                take(node.name, _parameters(node, method=node in methods))
    return {name: places for name, places in found.items() if places}


def results_in(trees: Iterable[ast.AST]) -> dict[str, set[int]]:
    """Where a code stands in the tuple that a function returns: its caller unpacks it into such a name."""
    found: dict[str, set[int]] = defaultdict(set)
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Tuple):
            for at, target in enumerate(node.targets[0].elts):
                if isinstance(target, ast.Name) and target.id in _NAMES:
                    found[called(node.value)].add(at)
    return found


def values_of(value: ast.expr | None) -> Iterator[str]:
    """Codes that an expression may be."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str) and _CODE.match(value.value):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from values_of(value.body)
        yield from values_of(value.orelse)
    elif isinstance(value, ast.BoolOp):
        for part in value.values:
            yield from values_of(part)


def codes_in(tree: ast.AST, places: dict[str, set[int]], results: dict[str, set[int]]) -> set[str]:
    """Codes that a module gives. `places` and `results` are those of its room."""
    found: set[str] = set()
    constants = {name: value_of(node) for node in ast.walk(tree) for name in names_of(node)}

    def take(*values: ast.expr | None) -> None:
        for value in values:
            found.update(values_of(value))

    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            take(*(value_of(item) for item in node.body if names_of(item) & _NAMES))
        elif isinstance(node, _Function):
            _take_results(node, results.get(node.name, set()), take)
        elif isinstance(node, ast.keyword) and node.arg in _NAMES:
            take(node.value)
        elif isinstance(node, ast.Call):
            take(*(argument for at, argument in enumerate(node.args) if at in places.get(called(node), ())))
            found |= _odd_ones(node, constants)
        elif names := names_of(node):
            value = value_of(node)
            if any(is_code_name(name) and name not in _NAMES for name in names):
                take(value)
            if any(name.endswith("_CODES") for name in names) and isinstance(value, ast.Dict):
                take(*value.keys, *value.values)
    return found


def _take_results(function: _Function, at: set[int], take: Callable[..., None]) -> None:
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            take(*(value for n, value in enumerate(node.value.elts) if n in at))
        elif isinstance(node, ast.Return) and function.name.endswith("code_of"):
            take(node.value)


def _odd_ones(node: ast.Call, constants: dict[str, ast.expr | None]) -> set[str]:
    """Codes in defaults, in kinds of alerts, and at the head of answers to updates."""
    name = called(node)
    if name == "getattr" and len(node.args) == 3 and getattr(node.args[1], "value", "") in _NAMES:
        return set(values_of(node.args[2]))
    if name == "get" and isinstance(node.func, ast.Attribute) and len(node.args) == 2:
        return set(values_of(node.args[1])) if getattr(node.func.value, "id", "").endswith("_CODES") else set()
    if name == "Alert":
        kinds = [keyword.value for keyword in node.keywords if keyword.arg == "kind"]
        return {code for kind in kinds for code in values_of(constants.get(getattr(kind, "id", ""), kind))}
    return set()


def leading_codes(tree: ast.AST) -> set[str]:
    """Codes that stand before a colon at the head of a text: `round-full: the round has ...`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (led := _LED_BY_CODE.match(node.value)):
            found.add(led[1])
    return found


def all_codes() -> dict[str, set[str]]:
    """Every code, and the rooms that give it."""
    found: dict[str, set[str]] = defaultdict(set)
    for room in ROOMS:
        trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / room).rglob("*.py"))]
        places, results = places_in(trees), results_in(trees)
        for tree in trees:
            for code in codes_in(tree, places, results) | leading_codes(tree):
                found[code].add(room.split("/")[0])
    return dict(found)


def explained() -> dict[str, tuple[str, str]]:
    """Cause and mend of every code in docs/errors.md."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = [(m["code"], (m["cause"].strip(), m["mend"].strip())) for m in _ROW.finditer(text)]
    assert len({code for code, _ in rows}) == len(rows), "a code stands twice"
    return dict(rows)


def test_every_error_code_is_explained_and_no_other() -> None:
    known, written = all_codes(), explained()
    assert {c: sorted(r) for c, r in known.items() if c not in written} == {}, "docs/errors.md does not explain these"
    assert sorted(set(written) - set(known)) == [], "docs/errors.md explains what no code raises"


def test_every_explanation_says_a_cause_and_what_to_do() -> None:
    short = {code: row for code, row in explained().items() if len(row[0]) < 15 or len(row[1]) < 10}
    assert short == {}


def test_the_page_says_each_status_that_a_code_comes_with() -> None:
    told = [(code, f"HTTP {status}") for code, status in STATUS.items()]
    told += [(str(getattr(kind, "code", "")), f"HTTP {status}") for kind, status in SERVING_STATUS]
    tool = [kind for kind in vars(cli_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    told += [(kind.code, f"exit status {kind.exit.value}") for kind in tool if issubclass(kind, cli_errors.CliError)]
    causes = {code: cause.lower() for code, (cause, _) in explained().items()}
    assert [f"{code}: {status}" for code, status in told if status.lower() not in causes[code]] == []


def test_what_the_agent_has_words_for_exists() -> None:
    assert sorted(WORDS.keys() - all_codes().keys()) == []


def test_codes_are_found_where_they_stand() -> None:
    tree = ast.parse(
        'class E(X):\n    code = "a-b"\nraise Y("t", code="c-d" if z else "e")\nTIMEOUT_CODE = "f"\nname = "not-one"\n'
        'class R:\n    at: int\n    code: str = ""\nR(1, "g-g")\n'
        'class C:\n    def tell(self, code, text): ...\nc.tell("h-h", "not-this")\n'
        'def f():\n    return "not-that", "i-i" if z else "j"\na, code = f()\n'
        'def code_of(e):\n    return e.code or "k"\nX_CODES = {404: "l-l"}\nX_CODES.get(s, "m")\n'
        'getattr(e, "code", "n")\nKIND = "o-o"\nAlert(kind=KIND)\nJob(kind="not-a-code")\nCODE = "p"'
    )
    found = codes_in(tree, places_in([tree]), results_in([tree]))
    assert found == {"a-b", "c-d", "e", "f", "g-g", "h-h", "i-i", "j", "k", "l-l", "m", "n", "o-o", "p"}
    assert leading_codes(ast.parse('error = f"q-q: the round has {n}"; other = f"r-r: {n}"')) == {"q-q"}
