"""What every tensor is in C: a caller's buffer, a constant, or a place in the arena. Pure.

A view (RESHAPE) shares its input's bytes. An operator that may work in place does so where
nobody reads its input afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgewise_converter.c99.arena import Block, Plan, plan
from edgewise_converter.c99.graph import Graph


@dataclass(frozen=True, slots=True)
class Sharing:
    """For an operator: inputs whose bytes its output may take; `view` when it must, because they are the same."""

    candidates: tuple[int, ...] = ()
    view: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    """C expressions of tensors, and the arena's plan.

    Attributes:
        expressions: by tensor.
        copies: outputs that are no buffer of their own: (place, expression to copy from).
        blocks: what was planned, by a tensor that stands for its group.
        plan: of the arena.
    """

    expressions: Mapping[int, str]
    copies: tuple[tuple[int, str], ...]
    blocks: Mapping[int, Block]
    plan: Plan


@dataclass
class _Groups:
    """Tensors that share bytes."""

    parent: dict[int, int] = field(default_factory=dict)

    def root(self, index: int) -> int:
        while (above := self.parent.get(index, index)) != index:
            index = above
        return index

    def join(self, index: int, under: int) -> None:
        self.parent[self.root(index)] = self.root(under)


def assign(graph: Graph, sharing: Sequence[Sharing]) -> Storage:
    """Give every activation its place.

    Args:
        graph: what is computed.
        sharing: one for each operator.
    """
    end = len(graph.ops)
    first = dict.fromkeys(graph.inputs, -1)
    last: dict[int, int] = {}
    for position, op in enumerate(graph.ops):
        for index in op.inputs:
            last[index] = position
        for index in op.outputs:
            first[index] = position
    last |= dict.fromkeys(graph.outputs, end)
    groups = _join(graph, sharing, first, last)
    held = set(graph.inputs)
    members: dict[int, list[int]] = {}
    for index in first:
        members.setdefault(groups.root(index), []).append(index)
    places: dict[int, str] = {}
    blocks: dict[int, Block] = {}
    for root, group in members.items():
        own = [index for index in group if index in held]
        given = [place for place, index in enumerate(graph.outputs) if index in group]
        if own:
            places[root] = f"in{graph.inputs.index(own[0])}"
        elif given:
            places[root] = f"out{given[0]}"
        else:
            blocks[root] = Block(
                max(graph.tensors[i].size for i in group),
                min(first[i] for i in group),
                max(last.get(i, first[i]) for i in group),
            )
    planned = plan(blocks)
    places |= {root: f"(arena + {offset})" for root, offset in planned.offsets.items()}
    expressions = {index: places[groups.root(index)] for index in first}
    copies = tuple((n, expressions[i]) for n, i in enumerate(graph.outputs) if expressions[i] != f"out{n}")
    return Storage(expressions, copies, blocks, planned)


def _join(graph: Graph, sharing: Sequence[Sharing], first: Mapping[int, int], last: Mapping[int, int]) -> _Groups:
    groups = _Groups()
    ends: dict[int, int] = {index: last.get(index, start) for index, start in first.items()}
    for position, (op, shares) in enumerate(zip(graph.ops, sharing, strict=True)):
        output = op.outputs[0]
        for candidate in shares.candidates:
            if candidate not in first:
                continue
            root = groups.root(candidate)
            untouched = root in graph.inputs or any(groups.root(i) == root for i in graph.inputs)
            if shares.view or (not untouched and ends[root] <= position):
                groups.join(output, candidate)
                ends[groups.root(candidate)] = max(ends[root], ends[output])
                break
    return groups
