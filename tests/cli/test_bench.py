"""Danger: `edgewise bench` measures something else than was named, or hides a budget that is missed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_cli.errors import RefusedError, UnreachableError
from edgewise_cli.served import counted, encode, made_up
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "sorter.onnx").write_bytes(made.SerializeToString())
    return tmp_path / "sorter.onnx"


def test_a_model_is_measured_drawn_and_told_where(edgewise: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    done = edgewise("bench", model, "-p", "raspberry-pi-4-64", "--seconds", 0.1, "--plot", plot)
    assert done.status == 0, done.err
    assert "sorter.onnx" in done.out and "median ms" in done.out and "█" in done.out
    assert "does not bind here" in done.out and "says nothing of the latency there" in done.out
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = edgewise("bench", model, "--seconds", 0.1, "--json").document
    timed = found["timed"][0]
    assert found["passed"] and found["threads"] == 1 and found["host"]["machine"]
    assert timed["latencies"]["calls"] == sum(b["calls"] for b in timed["histogram"]) > 0


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("missing.onnx",), 1),
        (("missing.ewb",), 1),
        (("x", "--url", "device:8089"), 2),
        (("x", "--url", "http://127.0.0.1:9"), 3),
        (("x", "--url", "http://127.0.0.1:9", "--threads", 2), 2),
        (("x.onnx", "-p", "no-board"), 6),
        (("x.onnx", "--seconds", 0), 1),
    ],
)
def test_wrong_use_is_told(edgewise: Callable[..., Any], arguments: tuple[Any, ...], status: int) -> None:
    done = edgewise("bench", *arguments)
    assert done.status == status and done.err.startswith("edgewise: ")


def test_a_damaged_bundle_is_a_file_error(edgewise: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.ewb").write_bytes(b"PK\x05\x06 but no bundle")
    done = edgewise("bench", tmp_path / "a.ewb", "--json")
    assert done.status == 9 and done.document["error"]["code"] == "bundle-damaged"


@contextmanager
def server(answers: dict[str, tuple[int, Any]]) -> Iterator[tuple[str, list[bytes]]]:
    """A server of the protocol that answers by path, without Edgewise's extensions."""
    asked: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            asked.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            status, document = answers.get(self.path, (404, {"error": "nothing here"}))
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: Any) -> None:
            return None

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}", asked
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


TRITON = {
    "/v2": (200, {"name": "triton", "version": "2", "extensions": []}),
    "/v2/models/m": (200, {"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}),
    "/v2/models/m/infer": (200, {"outputs": []}),
}


def test_any_server_of_the_protocol_is_timed_and_what_it_does_not_tell_is_said(edgewise: Callable[..., Any]) -> None:
    with server(TRITON) as (url, asked):
        done = edgewise("bench", "m", "--url", url, "--seconds", 0.1)
    assert done.status == 0 and "triton 2" in done.out and "not told" in done.out and "network" in done.out
    request = json.loads(next(body for body in asked if body))
    assert request["inputs"][0]["shape"] == [1, 2] and len(request["inputs"][0]["data"]) == 2


@pytest.mark.parametrize(
    ("changed", "status", "says"),
    [
        ({"/v2": (404, {})}, 3, "does not speak"),
        ({"/v2/models/m/infer": (500, {"error": "the engine failed"})}, 1, "HTTP 500: the engine failed"),
        ({"/v2/models/m": (200, {"inputs": [{"name": "x"}]})}, 3, "not of the Open Inference Protocol"),
        ({"/v2/models/m": (200, {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1]}]})}, 1, "name a bundle"),
    ],
)
def test_what_a_server_does_wrong_is_told(
    edgewise: Callable[..., Any], changed: dict[str, Any], status: int, says: str
) -> None:
    with server({**TRITON, **changed}) as (url, _):
        done = edgewise("bench", "m", "--url", url, "--seconds", 0.05)
    assert done.status == status and says in done.err


def test_a_request_is_the_same_in_json_and_in_binary() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    body, headers = encode({"x": x, "n": np.array([7], np.int64)}, binary=True)
    length = int(headers["Inference-Header-Content-Length"])
    head = json.loads(body[:length])
    assert body[length:] == x.tobytes() + np.array([7], np.int64).tobytes()
    assert [t["parameters"]["binary_data_size"] for t in head["inputs"]] == [24, 8]
    plain, _ = encode({"x": x}, binary=False)
    assert json.loads(plain)["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": x.ravel().tolist()}
    ]


def test_numbers_are_only_made_up_for_what_is_described() -> None:
    assert made_up([{"name": "x", "datatype": "INT8", "shape": [-1, 3]}], "m")["x"].tolist() == [[0, 0, 0]]
    with pytest.raises(UnreachableError):
        made_up(None, "m")
    with pytest.raises(RefusedError):
        made_up([{"name": "x", "datatype": "FP32", "shape": [1 << 20, 1 << 20]}], "m")


def test_the_devices_own_figures_are_those_of_the_model_and_version() -> None:
    text = (
        'edgewise_inference_seconds_sum{model="a",version="1"} 0.5\n'
        'edgewise_inference_seconds_count{model="a",version="1"} 10\n'
        'edgewise_inference_seconds_sum{model="a",version="2"} 9\n'
    )
    assert counted(text, "a", "1") == (10, 0.5)
    assert counted(text, "a", "2") is None and counted(text, "b", "1") is None and counted("", "a", "1") is None
