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
from edgewise_converter.calibration import spread
from edgewise_converter.errors import MissingExtraError, PassError
from edgewise_converter.passes.artifact import Artifact
from edgewise_converter.passes.onnx_catalogue import OnnxInt8Config
from edgewise_converter.passes.onnx_graph import canonical, topological
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.passes.tflite_catalogue import TfliteInt8Config
from edgewise_converter.search.candidates import Origin, candidates
from edgewise_converter.search.searching import chosen
from edgewise_profiles import catalogue
from edgewise_profiles.errors import NoTargetError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

PARITY = {"float32": 1e-4, "float16": 5e-3, "int8": 0.1}
"""Relative error that each precision may cost."""
FORMS = ("onnx-float16", "onnx-float32", "onnx-int8", "tflite-float32", "tflite-int8")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_what_the_source_says(workshop: Any, form: str) -> None:
    artifact, score = workshop.make(form), workshop.score(form)
    assert score.relative_error <= PARITY[artifact.precision]
    assert score.agreement >= (0.95 if artifact.precision == "int8" else 0.99)
    assert score.value > 0.95
    assert abs(score.drop) <= 1.0
    assert f"{artifact.format}-{artifact.precision}" == form


def test_lossy_forms_are_smaller_in_the_order_of_their_width(workshop: Any) -> None:
    size = {form: len(workshop.make(form).data) for form in FORMS}
    assert size["onnx-float16"] < 0.7 * size["onnx-float32"]
    assert size["onnx-int8"] < 0.7 * size["onnx-float32"]
    assert size["tflite-int8"] < 0.55 * size["tflite-float32"]


def test_the_registry_lists_and_plans_without_loading_any_heavy_library() -> None:
    code = (
        "import sys\n"
        "from edgewise_converter.passes.registry import PASSES\n"
        "from edgewise_converter.search.candidates import Origin, candidates\n"
        "from edgewise_profiles import catalogue\n"
        "assert len(PASSES) >= 5\n"
        "assert all(candidates(p, Origin('torch')) for p in catalogue.load_all())\n"
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


def test_every_form_of_every_profile_can_be_made_of_a_run() -> None:
    for profile in catalogue.load_all():
        for target in profile.targets:
            found = [
                c
                for c in candidates(profile, Origin("torch"))
                if (c.engine, c.format, c.precision) == (target.engine, target.format, target.precision)
            ]
            assert found, (profile.id, target)
            for candidate in found:
                assert all(isinstance(step.config, PASSES[step.name].config) for step in candidate.steps)
                assert PASSES[candidate.steps[0].name].reads is None


def test_a_form_that_a_profile_does_not_allow_is_refused(workshop: Any) -> None:
    with pytest.raises(NoTargetError, match="tflite-int16x8"):
        chosen(workshop.model, catalogue.load("x86-64"), "tflite-int16x8")


def test_int8_follows_the_processor() -> None:
    configs = {}
    for name in ("x86-64", "x86-64-vnni", "raspberry-pi-5"):
        found = candidates(catalogue.load(name), Origin("torch"))
        configs[name] = next(c.steps[-1].config for c in found if c.name == "onnxruntime int8")
    assert configs["x86-64"] == OnnxInt8Config(reduce_range=True, activations="uint8")
    assert configs["x86-64-vnni"] == OnnxInt8Config(reduce_range=False, activations="uint8")
    assert configs["raspberry-pi-5"] == OnnxInt8Config(reduce_range=False, activations="int8")


@pytest.mark.parametrize(("profile", "least", "most"), [("x86-64", 33, 64), ("x86-64-vnni", 65, 127)])
def test_reduced_range_keeps_weights_to_seven_bits_and_scales_are_per_channel(
    workshop: Any, profile: str, least: int, most: int
) -> None:
    model = onnx.load_from_string(workshop.make("onnx-int8", profile).data)
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

    data = workshop.make(form).data
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
    x = workshop.x
    together = session.run(["logits"], {"x": x[:32]})[0]
    for batch in (1, 5):
        alone = session.run(["logits"], {"x": x[:batch]})[0]
        np.testing.assert_allclose(alone, together[:batch], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("form", [f for f in FORMS if f.startswith("tflite")])
def test_tflite_files_carry_the_records_names_and_no_paths(workshop: Any, form: str) -> None:
    data = workshop.make(form).data
    interpreter = Interpreter(model_content=data, num_threads=1)
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["x"], "outputs": ["logits"]}}
    wanted = np.int8 if form.endswith("int8") else np.float32
    details = (*interpreter.get_input_details(), *interpreter.get_output_details())
    assert {d["dtype"] for d in details} == {wanted}
    for trace in (b".py", b"site-packages", b"/root", b"/home", b"edgewise"):
        assert trace not in data, trace


def test_passes_refuse_what_they_cannot_read(workshop: Any) -> None:
    materials = workshop.model.materials
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
