"""Danger: an export or a quantization changes what the model says, or depends on what must not matter."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from edgewise_converter.budget import PARITY
from edgewise_converter.calibration import spread
from edgewise_converter.errors import MissingExtraError, PassError
from edgewise_converter.passes.artifact import Artifact
from edgewise_converter.passes.onnx_catalogue import OnnxInt8Config
from edgewise_converter.passes.onnx_graph import canonical, topological
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.passes.tflite_catalogue import TfliteInt8Config
from edgewise_converter.plan import CHAINS, plan
from edgewise_profiles import catalogue
from edgewise_profiles.schema import Target
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

FORMS = sorted(f"{format_}-{precision}" for format_, precision in CHAINS)


def finish(workshop: Any, form: str, profile: str = "x86-64-vnni") -> Any:
    board = catalogue.load(profile)
    return workshop.finish(plan(board, board.target(form)), lambda stage, share: None)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_what_the_source_says(workshop: Any, form: str) -> None:
    finished = finish(workshop, form)
    parity, quality = PARITY[finished.artifact.precision], finished.quality
    assert quality.max_error <= parity.max_error
    assert quality.rms_error <= parity.rms_error
    assert quality.agreement >= parity.agreement
    assert quality.accuracy > 0.95
    assert abs(quality.accuracy - quality.accuracy_float) <= 0.01
    assert f"{finished.artifact.format}-{finished.artifact.precision}" == form


def test_lossy_forms_are_smaller_in_the_order_of_their_width(workshop: Any) -> None:
    size = {form: len(finish(workshop, form).artifact.data) for form in FORMS}
    assert size["onnx-float16"] < 0.7 * size["onnx-float32"]
    assert size["onnx-int8"] < 0.7 * size["onnx-float32"]
    assert size["tflite-int8"] < 0.55 * size["tflite-float32"]


def test_the_registry_lists_and_plans_without_loading_any_heavy_library() -> None:
    code = (
        "import sys, edgewise_converter.api\n"
        "from edgewise_converter.passes.registry import PASSES\n"
        "from edgewise_converter.plan import CHAINS, plan\n"
        "from edgewise_profiles import catalogue\n"
        "assert len(PASSES) >= 5\n"
        "[plan(p, t) for p in catalogue.load_all() for t in p.targets if (t.format, t.precision) in CHAINS]\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'litert_torch', 'ai_edge_litert', 'ai_edge_quantizer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["torch", "onnxruntime.quantization", "ai_edge_quantizer.recipe"])
def test_a_library_that_is_not_there_is_told_with_the_extra_to_install(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgewise_converter.libraries import need

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"edgewise\[converter\]"):
        need(module)


def test_foreign_libraries_are_quiet_only_while_they_are_called(caplog: pytest.LogCaptureFixture) -> None:
    import logging
    import os
    import warnings

    from edgewise_converter.libraries import quietly

    before = dict(os.environ)
    with quietly():
        warnings.warn("hush", UserWarning, stacklevel=1)
        logging.warning("hush")
        logging.getLogger("torch.onnx").warning("hush")
        logging.getLogger("edgewise").warning("heard inside")
    logging.getLogger("torch.onnx").warning("heard after")
    assert [r.getMessage() for r in caplog.records] == ["heard inside", "heard after"]
    assert dict(os.environ) == before
    with pytest.warns(UserWarning, match="loud"):
        warnings.warn("loud", UserWarning, stacklevel=1)


def test_every_profiles_default_has_a_plan_or_needs_a_search() -> None:
    for profile in catalogue.load_all():
        for target in profile.targets:
            if (target.format, target.precision) not in CHAINS:
                with pytest.raises(PassError, match="without a search"):
                    plan(profile, target)
                continue
            steps = plan(profile, target)
            last = PASSES[steps[-1].name]
            assert (last.makes, last.precision) == (target.format, target.precision)
            assert all(isinstance(step.config, PASSES[step.name].config) for step in steps)
            assert PASSES[steps[0].name].reads is None


def test_a_form_that_no_pass_makes_is_refused() -> None:
    with pytest.raises(PassError, match="tflite-int16x8"):
        plan(catalogue.load("x86-64"), Target(engine="litert", precision="int16x8"))


def test_int8_follows_the_processor() -> None:
    configs = {}
    for name in ("x86-64", "x86-64-vnni", "raspberry-pi-5"):
        profile = catalogue.load(name)
        configs[name] = plan(profile, Target(engine="onnxruntime", precision="int8"))[-1].config
    assert configs["x86-64"] == OnnxInt8Config(reduce_range=True, activations="uint8")
    assert configs["x86-64-vnni"] == OnnxInt8Config(reduce_range=False, activations="uint8")
    assert configs["raspberry-pi-5"] == OnnxInt8Config(reduce_range=False, activations="int8")


@pytest.mark.parametrize(("profile", "least", "most"), [("x86-64", 33, 64), ("x86-64-vnni", 65, 127)])
def test_reduced_range_keeps_weights_to_seven_bits_and_scales_are_per_channel(
    workshop: Any, profile: str, least: int, most: int
) -> None:
    model = onnx.load_from_string(finish(workshop, "onnx-int8", profile).artifact.data)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {n: a for n, a in arrays.items() if a.dtype == np.int8 and a.ndim >= 2}
    assert len(weights) == 3
    for array in weights.values():
        assert least <= np.abs(array.astype(int)).max() <= most
    widened = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights]
    assert {12, 24} <= {arrays[node.input[1]].size for node in widened}


@pytest.mark.parametrize("form", [f for f in FORMS if f.startswith("onnx")])
def test_onnx_files_hold_nothing_but_the_graph_and_take_any_batch(workshop: Any, form: str) -> None:
    import onnxruntime

    data = finish(workshop, form).artifact.data
    model = onnx.load_from_string(data)
    assert {o.domain for o in model.opset_import} == {""}
    assert model.opset_import[0].version == 20
    assert not model.metadata_props
    assert not model.producer_version
    assert not model.graph.value_info
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    for trace in (b".py", b"site-packages", b"torch", b"/home", b"/root", b"stack"):
        assert trace not in data, trace
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    x = workshop.heldout.x
    together = session.run(["logits"], {"x": x[:32]})[0]
    for batch in (1, 5):
        alone = session.run(["logits"], {"x": x[:batch]})[0]
        np.testing.assert_allclose(alone, together[:batch], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("form", [f for f in FORMS if f.startswith("tflite")])
def test_tflite_files_carry_the_records_names_and_no_paths(workshop: Any, form: str) -> None:
    data = finish(workshop, form).artifact.data
    interpreter = Interpreter(model_content=data, num_threads=1)
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["x"], "outputs": ["logits"]}}
    wanted = np.int8 if form.endswith("int8") else np.float32
    details = (*interpreter.get_input_details(), *interpreter.get_output_details())
    assert {d["dtype"] for d in details} == {wanted}
    for trace in (b".py", b"site-packages", b"/root", b"/home", b"edgewise"):
        assert trace not in data, trace


def test_passes_refuse_what_they_cannot_read(workshop: Any) -> None:
    materials = workshop.materials
    with pytest.raises(PassError, match="cannot be quantized"):
        PASSES["tflite_int8"].load()(materials, Artifact(bytes(64), "tflite", "float32"), TfliteInt8Config())
    identity = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["logits"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1, 8, 8])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
    )
    plain = Artifact(identity.SerializeToString(), "onnx", "float32")
    with pytest.raises(PassError, match="onnx_int8 changed nothing"):
        PASSES["onnx_int8"].load()(materials, plain, OnnxInt8Config(reduce_range=False))


def chain_model(names: list[str], domain: str = "") -> Any:
    nodes = [helper.make_node("Neg", [a], [b], domain=domain) for a, b in itertools.pairwise(names)]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "from /home/somebody/model.py",
            [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, ["n", 2])],
            [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["n", 2])],
            doc_string="made today",
        ),
        opset_imports=[helper.make_opsetid(domain, 20)],
        producer_name="somebody",
    )


def test_canonical_refuses_foreign_operators_and_other_names() -> None:
    with pytest.raises(PassError, match=r"com\.example"):
        canonical(chain_model(["x", "y"], "com.example"), ["x"], ["y"])
    with pytest.raises(PassError, match="are needed"):
        canonical(chain_model(["x", "y"]), ["x"], ["logits"])
    broken = chain_model(["x", "y"])
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(PassError, match="not valid ONNX"):
        canonical(broken, ["x"], ["y"])


@given(st.permutations(range(6)), st.integers(0, 2**30))
def test_canonical_bytes_do_not_depend_on_metadata_or_the_order_of_initializers(order: list[int], salt: int) -> None:
    def build(places: list[int], note: str) -> bytes:
        model = chain_model(["x", "y"])
        tensors = [numpy_helper.from_array(np.full(1, i, np.float32), f"w{i}") for i in range(6)]
        model.graph.initializer.extend(tensors[i] for i in places)
        model.graph.node[0].doc_string = note
        model.graph.node[0].metadata_props.add(key="stack", value=note)
        model.metadata_props.add(key="date", value=note)
        model.producer_version = note
        return canonical(model, ["x"], ["y"])

    assert build(order, str(salt)) == build(list(range(6)), "")


@given(st.permutations(range(7)))
def test_nodes_are_put_in_an_order_that_runs(order: list[int]) -> None:
    nodes = list(chain_model([f"t{i}" for i in range(8)]).graph.node)
    assert [n.output[0] for n in topological([nodes[i] for i in order])] == [f"t{i}" for i in range(1, 8)]


def test_a_cycle_is_refused() -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    with pytest.raises(PassError, match="cycle"):
        topological(nodes)


@given(st.integers(1, 3000), st.integers(1, 600))
def test_calibration_samples_are_spread_over_all(count: int, limit: int) -> None:
    x = np.arange(count, dtype=np.float32)[:, None]
    chosen = spread(x, limit)[:, 0]
    assert len(chosen) == min(count, limit)
    assert (np.diff(chosen) >= 1).all()
    if limit > 1:
        assert (chosen[0], chosen[-1]) == (0, count - 1)


def test_configs_are_hashable_refuse_unknown_keys_and_bound_their_values() -> None:
    assert hash(OnnxInt8Config(reduce_range=True)) == hash(OnnxInt8Config(reduce_range=True))
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"reduce_range": True, "bits": 4}, OnnxInt8Config)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"calibration_samples": 0}, TfliteInt8Config)
