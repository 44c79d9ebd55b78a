"""Requests per second and latency of the agent's HTTP server, JSON against binary bodies.

    python benchmarks/serving.py [--seconds 3] [--uvloop] [--observe] [--json]

The server runs in a process of its own with one small model; the client keeps 1 or 8
connections busy without pipelining, each request after the answer to the one before. Client
and server share the machine's cores, so that the figures are a floor. `small` is a
convolutional network on 1 x 8 x 8, `wide` a sum over 3 x 64 x 64 (12,288 float32).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = {"small": (1, 8, 8), "wide": (3, 64, 64)}


def build_model(name: str) -> bytes:
    """An ONNX file: `logits` (n, 10) of `x` (n, *SHAPES[name]). Random weights, seeded."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    constants: list[Any] = []

    def weight(label: str, *shape: int) -> str:
        scale = 1 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        constants.append(numpy_helper.from_array((rng.normal(size=shape) * scale).astype(np.float32), label))
        return label

    if name == "small":
        nodes = [
            helper.make_node("Conv", ["x", weight("w1", 16, 1, 3, 3)], ["c1"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c1"], ["r1"]),
            helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Conv", ["p1", weight("w2", 32, 16, 3, 3)], ["c2"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c2"], ["r2"]),
            helper.make_node("Flatten", ["r2"], ["f"]),
            helper.make_node("Gemm", ["f", weight("w3", 512, 10)], ["logits"]),
        ]
    else:
        nodes = [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("Gemm", ["f", weight("w", 12288, 10)], ["logits"]),
        ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *SHAPES[name]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def request_bytes(name: str, binary: bool) -> bytes:
    """One complete HTTP request for one sample."""
    x = np.random.default_rng(1).normal(size=(1, *SHAPES[name])).astype(np.float32)
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": list(x.shape)}
    headers = ""
    if binary:
        tensor["parameters"] = {"binary_data_size": x.nbytes}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        body, headers = head + x.tobytes(), f"inference-header-content-length: {len(head)}\r\n"
    else:
        tensor["data"] = x.reshape(-1).tolist()
        body = json.dumps({"inputs": [tensor]}).encode()
    first = f"POST /v2/models/{name}/infer HTTP/1.1\r\nhost: device\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return first.encode() + body


class Asker(asyncio.Protocol):
    """Sends one request after the other, and notes how long each took."""

    def __init__(self, request: bytes, until: float) -> None:
        self.request, self.until = request, until
        self.times: list[float] = []
        self.done = asyncio.get_running_loop().create_future()
        self._got, self._size, self._head = 0, 0, b""
        self._transport: asyncio.Transport | None = None
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        # Every answer is as long as the first one, whose head says how long it is.
        self._got += len(data)
        if not self._size:
            self._head += data
            head, found, _ = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self.done.set_exception(RuntimeError(head.decode()))
                return
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
            self._size = len(head) + 4 + int(length.split(b":")[1])
        if self._got >= self._size:
            now = time.perf_counter()
            self.times.append(now - self._sent)
            self._got = 0
            if now >= self.until:
                self.done.set_result(None)
            else:
                self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or RuntimeError("the server closed the connection"))

    def _ask(self) -> None:
        assert self._transport is not None
        self._sent = time.perf_counter()
        self._transport.write(self.request)


async def load(port: int, request: bytes, connections: int, seconds: float) -> dict[str, float]:
    """Keep connections busy; requests per second, median and p95 in ms."""
    loop = asyncio.get_running_loop()
    begin = time.perf_counter()
    askers: list[Asker] = []
    for _ in range(connections):
        _, asker = await loop.create_connection(lambda: Asker(request, begin + seconds), "127.0.0.1", port)
        askers.append(asker)
    await asyncio.wait_for(asyncio.gather(*(asker.done for asker in askers)), seconds + 30)
    elapsed = time.perf_counter() - begin
    times = sorted(t for asker in askers for t in asker.times)
    for asker in askers:
        if asker._transport is not None:
            asker._transport.close()
    return {
        "requests_per_s": len(times) / elapsed,
        "median_ms": statistics.median(times) * 1000,
        "p95_ms": times[int(len(times) * 0.95)] * 1000,
    }


def serve(folder: Path, observe: bool, uvloop: bool) -> None:
    """The server's process: prints its port, and at the end of its input its memory."""
    from edgewise_agent.observe import resources
    from edgewise_agent.observe.observer import Observer, ObserverConfig
    from edgewise_agent.observe.outbox import Outbox
    from edgewise_agent.serving.http import HttpServer
    from edgewise_agent.serving.table import ModelTable
    from edgewise_protocol.features import build_baseline
    from edgewise_protocol.manifest import FileEntry, Golden, Manifest, Requirements, TensorSpec

    table = ModelTable()
    for name in SHAPES:
        manifest = Manifest(
            spec_version="1.0",
            kind="inference",
            model=name,
            version=1,
            profile="x86-64",
            requires=Requirements(engine="onnxruntime"),
            files=(FileEntry(name="model.onnx", sha256="0" * 64, size=1),),
            task="classification",
            inputs=(TensorSpec(name="x", dtype="FP32", shape=(-1, *SHAPES[name])),),
            outputs=(TensorSpec(name="logits", dtype="FP32", shape=(-1, 10)),),
            model_file="model.onnx",
            golden=Golden(file="golden", samples=1, atol=0, rtol=0),
        )
        rng = np.random.default_rng(2)
        x, y = rng.normal(size=(50, *SHAPES[name])), rng.normal(size=(50, 10))
        baseline = build_baseline(x, y, "classification", kll=False) if observe else None
        table.activate(name, 1, "0" * 64, folder / f"{name}.onnx", manifest, baseline)
    observer = Observer(table, Outbox(folder / "outbox.db", 1 << 24), ObserverConfig()) if observe else None

    async def run() -> None:
        server = HttpServer(table, "127.0.0.1", 0)
        await server.start()
        print(server.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        found = resources.read()
        print(json.dumps({"pss_mib": found.pss_mib, "rss_mib": found.rss_mib}), flush=True)
        await server.stop()

    if observer is not None:
        observer.start()
    if uvloop:
        import uvloop as fast

        fast.run(run())
    else:
        asyncio.run(run())
    if observer is not None:
        observer.stop()
        print(json.dumps({"skipped": observer.skipped}), file=sys.stderr)
    table.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement, at most 60")
    parser.add_argument("--uvloop", action="store_true", help="serve on uvloop")
    parser.add_argument("--observe", action="store_true", help="with baselines, so that features are extracted")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object")
    parser.add_argument("--serve", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve:
        serve(Path(given.serve), given.observe, given.uvloop)
        return 0
    seconds = min(max(given.seconds, 0.1), 60.0)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in SHAPES:
            (Path(folder) / f"{name}.onnx").write_bytes(build_model(name))
        command = [sys.executable, __file__, "--serve", folder]
        command += [flag for flag, on in (("--observe", given.observe), ("--uvloop", given.uvloop)) if on]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            port = int(server.stdout.readline())
            for name in SHAPES:
                for binary in (False, True):
                    for connections in (1, 8):
                        label = f"{name} {'binary' if binary else 'JSON'} x{connections}"
                        print(f"measuring {label} for {seconds:g} s ...", file=sys.stderr, flush=True)
                        request = request_bytes(name, binary)
                        asyncio.run(load(port, request, connections, 0.2))
                        figures[label] = asyncio.run(load(port, request, connections, seconds))
            server.stdin.close()
            figures["server"] = json.loads(server.stdout.readline())
            server.wait(30)
    if given.json:
        print(json.dumps(figures, indent=1))
        return 0
    print(f"{'case':<18}{'requests/s':>12}{'median ms':>12}{'p95 ms':>10}")
    for label, row in figures.items():
        if label != "server":
            print(f"{label:<18}{row['requests_per_s']:>12.0f}{row['median_ms']:>12.3f}{row['p95_ms']:>10.3f}")
    print(f"server memory: {figures['server']['pss_mib']:.1f} MiB PSS, {figures['server']['rss_mib']:.1f} MiB RSS")
    return 0


if __name__ == "__main__":
    sys.exit(main())
