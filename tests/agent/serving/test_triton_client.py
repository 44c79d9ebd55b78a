"""The danger: a standard client, with its default settings, that cannot talk to a device, or gets other bits back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

DTYPES = ["BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64"]


@pytest.fixture
def client(models: Any, serve: Any) -> Iterator[triton.InferenceServerClient]:
    models.activate_scale(3, 2.0)
    with serve(models.table) as server, triton.InferenceServerClient(f"127.0.0.1:{server.port}") as made:
        yield made


def scale_input(x: np.ndarray, binary: bool = True) -> list[triton.InferInput]:
    tensor = triton.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary)
    return [tensor]


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scale")
    assert client.is_model_ready("scale", "3")
    assert not client.is_model_ready("scale", "2")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "edgewise-agent"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    found = client.get_model_metadata("scale")
    assert found["versions"] == ["3"]
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_infer_with_and_without_binary_data_and_codings(
    client: Any, binary: bool, request_coding: Any, response_coding: Any
) -> None:
    x = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)
    outputs = None if binary else [triton.InferRequestedOutput("y", binary_data=False)]
    result = client.infer(
        "scale",
        scale_input(x, binary),
        outputs=outputs,
        request_id="r-1",
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )
    assert result.as_numpy("y").tobytes() == (x * 2).tobytes()
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("r-1", "scale", "3")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("binary", [True, False])
def test_every_type_comes_back_bit_for_bit(models: Any, serve: Any, dtype: str, binary: bool) -> None:
    name = models.activate_identity(dtype)
    numpy_type = np.dtype(triton_to_np_dtype(dtype))
    rng = np.random.default_rng(3)
    if numpy_type.kind == "b":
        a = rng.integers(0, 2, (5, 2)).astype(bool)
    elif numpy_type.kind == "f":
        info = np.finfo(numpy_type)
        a = np.array([[0.1, -0.0], [info.max, info.min], [info.tiny, info.smallest_subnormal]], numpy_type)
    else:
        limits = np.iinfo(numpy_type)
        a = np.array([[limits.min, limits.max], [0, 1], [limits.max - 1, limits.min + 1]], numpy_type)
    c = rng.normal(size=(len(a), 1)).astype(np.float32)
    inputs = [triton.InferInput("a", list(a.shape), dtype), triton.InferInput("c", list(c.shape), "FP32")]
    inputs[0].set_data_from_numpy(a, binary_data=binary)
    inputs[1].set_data_from_numpy(c, binary_data=not binary)
    outputs = [triton.InferRequestedOutput("d"), triton.InferRequestedOutput("b", binary_data=binary)]
    with serve(models.table) as server, triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        result = client.infer(name, inputs, outputs=outputs)
    assert result.as_numpy("b").dtype == numpy_type
    assert result.as_numpy("b").tobytes() == a.tobytes()
    assert result.as_numpy("d").tobytes() == (-c).tobytes()


@pytest.mark.parametrize("binary", [True, False])
def test_nan_and_infinities_survive_both_ways(client: Any, binary: bool) -> None:
    x = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
    found = client.infer("scale", scale_input(x, binary), outputs=outputs).as_numpy("y")
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("binary", [True, False])
def test_classification_names_the_largest_first(client: Any, binary: bool) -> None:
    x = np.array([[0.5, 3, 1], [9, 8, 7]], np.float32)
    outputs = [triton.InferRequestedOutput("y", binary_data=binary, class_count=2)]
    found = client.infer("scale", scale_input(x), outputs=outputs).as_numpy("y")
    text = [[item.decode() if isinstance(item, bytes) else item for item in row] for row in found]
    assert text == [["6.000000:1:dog", "2.000000:2:hen"], ["18.000000:0:cat", "16.000000:1:dog"]]


def test_custom_parameters_come_back(client: Any) -> None:
    result = client.infer("scale", scale_input(np.zeros((1, 3), np.float32)), parameters={"camera": "north", "shot": 7})
    assert result.get_response()["parameters"] == {"camera": "north", "shot": 7}


def test_many_threads_of_one_client_get_their_own_answers(models: Any, serve: Any) -> None:
    models.activate_scale(1, 3.0)
    with (
        serve(models.table) as server,
        triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4) as client,
    ):
        sent = [np.full((1, 3), i, np.float32) for i in range(40)]
        for begin in range(0, len(sent), 8):
            waiting = [(x, client.async_infer("scale", scale_input(x))) for x in sent[begin : begin + 8]]
            for x, request in waiting:
                assert (request.get_result().as_numpy("y") == x * 3).all()


@pytest.mark.parametrize(
    ("model", "shape", "status", "says"),
    [
        ("other", (1, 3), "404", "no model 'other' is active"),
        ("scale", (1, 4), "400", r"'x' has the shape \[-1, 3\]; got \[1, 4\]"),
    ],
)
def test_errors_reach_the_client_as_text(client: Any, model: str, shape: Any, status: str, says: str) -> None:
    with pytest.raises(InferenceServerException, match=says) as caught:
        client.infer(model, scale_input(np.zeros(shape, np.float32)))
    assert caught.value.status() == status
