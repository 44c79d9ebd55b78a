"""Danger: a finished model reaches the fleet unsigned, half bundled, or under another name than its publisher meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "sorter.onnx"
    )
    return tmp_path / "sorter.onnx"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).normal(size=(128, 4)).astype(np.float32)
    np.savez(tmp_path / "sample.npz", x=x, y=x[:, :3].argmax(1))
    return tmp_path / "sample.npz"


def _publish(edgewise: Callable[..., Any], model: Path, sample: Path, keys: Path, out: Path, *more: Any) -> Any:
    return edgewise(
        *("publish", model, "--sample", sample, "--version", 4, "--profile", "x86-64", "--profile", "x86-64-vnni"),
        *("--channel", "lab", "--keys", keys, "--out", out, "--task", "classification", "--json", *more),
    )


def test_one_command_bundles_signs_and_publishes(
    model: Path, sample: Path, keys: Path, fleet: Any, edgewise: Callable[..., Any], tmp_path: Path
) -> None:
    done = _publish(edgewise, model, sample, keys, tmp_path / "out")
    assert done.status == 0, done.out
    assert done.document["changed"] and done.document["versions"] == {"targets": 2}
    assert sorted(done.document["files"]) == ["lab/sorter/x86-64-vnni/4.ewb", "lab/sorter/x86-64/4.ewb"]
    assert [b["accuracy"] for b in done.document["bundles"]] == [1.0, 1.0]
    assert len(fleet.attestations) == 2 and fleet.versions["targets"] == 2


def test_it_says_what_is_missing_and_does_nothing(
    model: Path, sample: Path, keys: Path, fleet: Any, edgewise: Callable[..., Any]
) -> None:
    done = edgewise("publish", model, "--keys", keys, "--sample", sample)
    assert done.status == 2 and "--version, --profile, --channel" in done.err
    assert fleet.versions["targets"] == 1


def test_a_refused_model_leaves_nothing_signed(
    sample: Path, keys: Path, fleet: Any, edgewise: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    done = _publish(edgewise, tmp_path / "broken.onnx", sample, keys, tmp_path / "out")
    assert done.status == 1 and done.document["error"]["code"] == "model-file"
    assert not (tmp_path / "out").exists() and not fleet.blobs


def test_an_unknown_channel_or_task_is_refused(
    model: Path, sample: Path, keys: Path, fleet: Any, edgewise: Callable[..., Any], tmp_path: Path
) -> None:
    done = _publish(edgewise, model, sample, keys, tmp_path / "a", "--task", "sorting")
    assert done.status == 2 and "sorting" in done.document["error"]["message"]
    done = _publish(edgewise, model, sample, keys, tmp_path / "b", "--channel", "moon")
    assert done.status == 1 and "moon" in done.document["error"]["message"]
    assert not (tmp_path / "b" / "release").exists() and not fleet.blobs


def test_a_release_that_is_there_is_not_made_again(
    model: Path, sample: Path, keys: Path, edgewise: Callable[..., Any], tmp_path: Path
) -> None:
    assert _publish(edgewise, model, sample, keys, tmp_path / "out").status == 0
    again = _publish(edgewise, model, sample, keys, tmp_path / "out")
    assert again.status == 1 and again.document["error"]["code"] == "release-exists"
    assert edgewise("publish", tmp_path / "out" / "release", "--keys", keys).status == 0


def test_options_of_a_finished_model_do_not_fit_a_release(
    sample: Path, keys: Path, edgewise: Callable[..., Any], tmp_path: Path
) -> None:
    done = edgewise("publish", tmp_path / "release", "--keys", keys, "--sample", sample)
    assert done.status == 2 and "--sample" in done.err
