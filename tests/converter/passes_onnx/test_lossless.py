"""Danger: a pass that must keep the answers changes them, or a graph is not what the device's engine reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from edgewise_converter.errors import PassError, UnchangedError
from edgewise_converter.passes.onnx_graph import canonical
from edgewise_converter.passes.onnx_scopes import opset, scopes
from onnx import TensorProto, helper
from passes_onnx_graphs import Case, answers, floats, make, model_of, samples, value


def nodes_of(data: bytes) -> int:
    return sum(len(scope.graph.node) for scope in scopes(onnx.load_from_string(data)))


@pytest.mark.parametrize("case", ["wordy", "conv_net", "products", "branches", "recurrent", "looped"])
def test_simplifying_keeps_the_answers_and_leaves_fewer_nodes_or_says_that_it_cannot(cases: Any, case: str) -> None:
    try:
        found = cases[case].through("onnx_simplify")
    except UnchangedError as error:
        assert "onnx_simplify changed nothing" in str(error) and case != "wordy"
        return
    assert nodes_of(found.data) < nodes_of(cases[case].artifact.data)
    assert cases[case].error(found.data) < 1e-5


def test_what_is_known_beforehand_is_folded_away(cases: Any) -> None:
    data = cases["wordy"].chain(("onnx_fix_shapes", {}), ("onnx_simplify", {})).data
    assert {node.op_type for node in onnx.load_from_string(data).graph.node} == {"Reshape", "Mul", "Tanh"}


def test_shapes_come_from_the_batch_the_settings_and_the_requests(cases: Any) -> None:
    def shapes(data: bytes) -> dict[str, list[Any]]:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return {v.name: v.shape for v in (*session.get_inputs(), *session.get_outputs())}

    fixed = cases["conv_net"].through("onnx_fix_shapes")
    assert shapes(fixed.data) == {"x": [1, 2, 8, 8], "y": [1, 5]}
    assert cases["conv_net"].error(fixed.data) < 1e-5
    assert shapes(cases["conv_net"].through("onnx_fix_shapes", batch=4).data)["y"] == [4, 5]
    assert shapes(cases["recurrent"].through("onnx_fix_shapes").data)["x"] == [9, 1, 10]
    assert shapes(cases["recurrent"].through("onnx_fix_shapes", sizes=(("steps", 9),)).data)["x"] == [9, 1, 10]
    with pytest.raises(PassError, match="'pixels' is no free dimension of case: steps"):
        cases["recurrent"].through("onnx_fix_shapes", sizes=(("pixels", 9),))
    with pytest.raises(UnchangedError, match="onnx_fix_shapes changed nothing"):
        cases["branches"].through("onnx_fix_shapes")


def test_a_size_that_the_graph_does_not_take_is_told(cases: Any) -> None:
    nodes = [make("Add", ["x", "w"], ["y"])]
    model = model_of(nodes, [value("x", ["n", "wide"])], [value("y", ["n", "wide"])], [floats("w", 1, 6)])
    from edgewise_converter.requests import Requests

    case = Case(model, Requests({"x": samples(8, 6)}))
    assert case.through("onnx_fix_shapes").data
    with pytest.raises(PassError, match=r"onnxruntime (refuses|fails on) case with fixed shapes"):
        case.through("onnx_fix_shapes", sizes=(("wide", 4),))


@pytest.mark.parametrize("case", ["conv_net", "products", "branches", "recurrent", "looped", "wordy"])
@pytest.mark.parametrize("wanted", [17, 20, 22])
def test_another_operator_set_gives_the_same_answers(cases: Any, case: str, wanted: int) -> None:
    found = cases[case].through("onnx_opset", opset=wanted, ir_version=8)
    model = onnx.load_from_string(found.data)
    assert (opset(model), model.ir_version) == (wanted, 8)
    assert cases[case].error(found.data) < 1e-5


def test_attributes_become_inputs_where_the_newer_set_wants_it_also_in_branches() -> None:
    def branch(name: str) -> Any:
        return helper.make_graph([make("ReduceMean", ["x"], [name], axes=[1])], name, [], [value(name, None)])

    nodes = [
        make("ReduceMax", ["x"], ["most"], keepdims=0),
        make("Greater", ["most", "limit"], ["big"]),
        make("If", ["big"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    from edgewise_converter.requests import Requests

    limit = onnx.numpy_helper.from_array(np.float32(1), "limit")
    model = model_of(nodes, [value("x", [2, 4])], [value("y", [2, 1])], [limit], opset=15)
    case = Case(model, Requests({"x": samples(20, 2, 4)}, batched=False))
    found = case.through("onnx_opset", opset=20)
    assert case.error(found.data) < 1e-6
    with pytest.raises(PassError, match=r"operator set 20 cannot be turned into 15: .*ReduceM"):
        dataclasses.replace(case, model=onnx.load_from_string(found.data)).through("onnx_opset", opset=15)


def test_an_operator_that_the_older_set_lacks_is_named_with_its_node() -> None:
    from edgewise_converter.requests import Requests

    model = model_of(
        [make("Gelu", ["x"], ["y"], name="activation")], [value("x", ["n", 4])], [value("y", ["n", 4])], [], opset=20
    )
    case = Case(model, Requests({"x": samples(8, 4)}))
    with pytest.raises(PassError, match=r"operator Gelu \(node 'activation'\) does not exist in operator set 19"):
        case.through("onnx_opset", opset=19)
    with pytest.raises(UnchangedError, match="onnx_opset changed nothing"):
        case.through("onnx_opset", opset=20)


def test_an_ir_that_is_too_new_is_brought_down(cases: Any) -> None:
    model = onnx.ModelProto.FromString(cases["conv_net"].model.SerializeToString())
    model.ir_version = 12
    case = dataclasses.replace(cases["conv_net"], model=model)
    assert onnx.load_from_string(case.through("onnx_opset", opset=18, ir_version=9).data).ir_version == 9


@pytest.mark.parametrize("level", ["basic", "extended"])
@pytest.mark.parametrize("case", ["conv_net", "products", "branches", "recurrent"])
def test_the_container_answers_alike_and_holds_no_processors_layout(cases: Any, case: str, level: str) -> None:
    found = cases[case].through("onnx_ort", level=level)
    assert found.format == "ort" and found.data[4:8] == b"ORTM"
    assert cases[case].error(found.data) < 1e-5
    assert b"ReorderInput" not in found.data, "of the layout NCHWc, which is one processor's"


def test_int8_stays_int8_in_the_container(cases: Any) -> None:
    found = cases["conv_net"].chain(("onnx_int8", {"reduce_range": False}), ("onnx_ort", {}))
    assert (found.format, found.precision) == ("ort", "int8") and b"QLinearConv" in found.data
    assert cases["conv_net"].error(found.data) < 0.03


def test_int4_is_not_put_into_a_container_that_older_engines_cannot_read(cases: Any) -> None:
    with pytest.raises(PassError, match="only read by the version"):
        cases["products"].chain(("onnx_int4", {}), ("onnx_ort", {}))


def test_canonical_takes_any_inputs_and_contributed_operators_and_strips_branches(cases: Any) -> None:
    model = onnx.ModelProto.FromString(cases["branches"].model.SerializeToString())
    (choice,) = (node for node in model.graph.node if node.op_type == "If")
    plain = canonical(onnx.ModelProto.FromString(model.SerializeToString()), ["x", "rate", "state"], ["y", "next"])
    for attribute in choice.attribute:
        attribute.g.doc_string = "/home/somebody"
        attribute.g.node[0].metadata_props.add(key="stack", value="/home/somebody/model.py")
        attribute.g.initializer.extend([floats("unused_b", 3), floats("unused_a", 3)])
    again = canonical(model, ["state", "x", "rate"], ["next", "y"])
    assert again == plain and b"/home" not in again
    foreign = onnx.ModelProto.FromString(cases["branches"].model.SerializeToString())
    (choice,) = (node for node in foreign.graph.node if node.op_type == "If")
    choice.attribute[0].g.node[0].domain = "com.microsoft"
    choice.attribute[0].g.node[0].op_type = "NoSuchKernel"
    with pytest.raises(PassError, match=r"com\.microsoft::NoSuchKernel"):
        canonical(foreign, ["x", "state", "rate"], ["y", "next"])


def test_functions_in_a_file_are_inlined_before_they_are_quantized() -> None:
    from edgewise_converter.requests import Requests

    function = helper.make_function(
        "own", "Dense", ["a", "b"], ["c"], [make("MatMul", ["a", "b"], ["c"])], [helper.make_opsetid("", 18)]
    )
    graph = helper.make_graph(
        [make("Dense", ["x", "w"], ["y"], domain="own")],
        "g",
        [value("x", ["n", 8])],
        [value("y", ["n", 16])],
        [floats("w", 8, 16)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9)
    case = Case(model, Requests({"x": samples(64, 8)}))
    found = case.through("onnx_int8", reduce_range=False)
    assert 0 < case.error(found.data) < 0.03
    assert answers(found.data, case.requests)["y"].shape == (64, 16)
    assert TensorProto.INT8 in {t.data_type for t in onnx.load_from_string(found.data).graph.initializer}
