"""Danger: two tensors that live at the same time share bytes, and one overwrites the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from edgewise_converter.c99.arena import ALIGNMENT, Block, lower_bound, plan
from hypothesis import given
from hypothesis import strategies as st

BLOCKS = st.lists(
    st.builds(lambda size, first, length: Block(size, first, first + length),
              st.integers(1, 500), st.integers(-1, 12), st.integers(0, 6)),
    max_size=14,
)  # fmt: skip


@given(BLOCKS)
def test_blocks_that_meet_do_not_overlap_and_all_lie_within_the_arena(found: list[Block]) -> None:
    blocks = dict(enumerate(found))
    made = plan(blocks)
    assert made.offsets.keys() == blocks.keys()
    for key, block in blocks.items():
        assert made.offsets[key] % ALIGNMENT == 0
        assert made.offsets[key] >= 0 and made.offsets[key] + block.size <= made.size
        for other in range(key):
            if blocks[other].meets(block):
                a, b = made.offsets[key], made.offsets[other]
                assert a + block.size <= b or b + blocks[other].size <= a
    assert lower_bound(blocks) <= made.size <= sum(b.size + ALIGNMENT for b in found)


def test_a_chain_takes_the_two_largest_neighbours() -> None:
    blocks = {0: Block(100, 0, 1), 1: Block(60, 1, 2), 2: Block(40, 2, 3), 3: Block(100, 3, 4)}
    assert plan(blocks).size == lower_bound(blocks) == 160


def test_a_branching_graph_answers_as_its_parts_do(new_graph: Any, host: Any, oracle: Any) -> None:
    """In-place sums, views, a value that is read late, and two outputs, one of which is read on."""
    g = new_graph()
    x = g.input((1, 4, 4, 2), 0.1, 3)
    a = g.op("QUANTIZE", [x], g.tensor((1, 4, 4, 2), 0.2, -5), schema.QuantizeOptionsT(), 2)
    b = g.op("QUANTIZE", [a], g.tensor((1, 4, 4, 2), 0.15, 9), schema.QuantizeOptionsT(), 2)
    c = g.op("ADD", [a, b], g.tensor((1, 4, 4, 2), 0.3, 1), schema.AddOptionsT(), 2)
    shape = g.constant(np.array([2, 16], np.int32))
    d = g.op("RESHAPE", [c, shape], g.tensor((2, 16), 0.3, 1), schema.ReshapeOptionsT(newShape=[2, 16]))
    e = g.op("ADD", [c, a], g.tensor((1, 4, 4, 2), 0.4, 0), schema.AddOptionsT(), 2)
    f = g.op("SOFTMAX", [d], g.tensor((2, 16), 1 / 256, -128), schema.SoftmaxOptionsT(beta=1.0), 2)
    h = g.op("ADD", [e, e], g.tensor((1, 4, 4, 2), 0.8, 0), schema.AddOptionsT(), 2)
    data = g.build(f, e, h)
    built = host(data)
    inputs = [np.random.default_rng(3).integers(-128, 128, (1, 4, 4, 2)).astype(np.int8)]
    before = inputs[0].copy()
    for found, wanted in zip(built.run(*inputs), oracle(data, inputs), strict=True):
        assert np.array_equal(found, wanted)
    assert np.array_equal(inputs[0], before), "the caller's input was written to"


def test_an_arena_of_the_callers_is_used_to_its_last_byte_and_no_further(new_graph: Any, host: Any) -> None:
    g = new_graph()
    x = g.input((1, 6, 6, 3), 0.1)
    weights = g.constant(np.ones((4, 3, 3, 3), np.int8), 0.02)
    bias = g.constant(np.zeros(4, np.int32), 0.002)
    options = schema.Conv2DOptionsT(padding=0, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    a = g.op("CONV_2D", [x, weights, bias], g.tensor((1, 6, 6, 4), 0.1), options, 3)
    y = g.op("QUANTIZE", [a], g.tensor((1, 6, 6, 4), 0.2), schema.QuantizeOptionsT(), 2)
    z = g.op("MEAN", [y, g.constant(np.array([1, 2], np.int32))], g.tensor((1, 4), 0.2), schema.ReducerOptionsT(), 2)
    built = host(g.build(z))
    size = built.sources.arena_bytes
    assert size == 144
    memory = np.full(size + 32, 99, np.int8)
    inputs = np.full((1, 6, 6, 3), 50, np.int8)
    (found,) = built.run(inputs, arena=memory[16 : 16 + size])
    assert (memory[:16] == 99).all() and (memory[-16:] == 99).all()
    assert not (memory[16:-16] == 99).all()
    assert np.array_equal(found, built.run(inputs)[0])
