"""A client of a device's Open Inference Protocol endpoint: REST with the binary tensor extension."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from demo.narrator import DemoError
from demo.world import MODEL, Device

_LENGTH = "Inference-Header-Content-Length"


def infer(client: httpx.Client, device: Device, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], str]:
    """Logits of a batch `x`, float32 (N, 1, 8, 8), and the version that answered.

    Raises:
        DemoError: the answer is not a good one.
    """
    data = np.ascontiguousarray(x, dtype="<f4").tobytes()
    header = {
        "inputs": [
            {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
        ],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(header).encode()
    answer = client.post(
        f"{device.url}/v2/models/{MODEL}/infer",
        content=head + data,
        headers={_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"},
    )
    if answer.status_code != 200:
        raise DemoError(f"{device.name} answered status {answer.status_code}: {answer.text[:300]}")
    length = int(answer.headers.get(_LENGTH, len(answer.content)))
    document = json.loads(answer.content[:length])
    output: dict[str, Any] = document["outputs"][0]
    values = np.frombuffer(answer.content[length:], dtype="<f4").reshape(output["shape"])
    return values.astype(np.float32), str(document.get("model_version", ""))


def classify(device: Device, x: NDArray[np.float32], batch: int = 10) -> tuple[NDArray[np.int64], set[str]]:
    """Classes of `x`, sent in small batches, and the versions that answered."""
    found, versions = [], set()
    with httpx.Client(timeout=20) as client:
        for start in range(0, len(x), batch):
            logits, version = infer(client, device, x[start : start + batch])
            found.append(logits.argmax(1))
            versions.add(version)
    return np.concatenate(found).astype(np.int64), versions


@dataclass
class Hammer:
    """A client that sends requests without a pause, and counts what came back."""

    device: Device
    x: NDArray[np.float32]
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Hammer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        with httpx.Client(timeout=20) as client:
            turn = 0
            while not self._stop.is_set():
                try:
                    _, version = infer(client, self.device, self.x[turn % len(self.x)][None])
                except (httpx.HTTPError, DemoError, ValueError, KeyError) as error:
                    self.failures.append(str(error)[:200])
                else:
                    self.answered += 1
                    self.versions.add(version)
                turn += 1
                # A busy loop of three clients would take both cores from what is measured.
                self._stop.wait(0.004)
