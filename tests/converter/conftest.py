"""A run directory as the trainer writes it: a small network, trained on scikit-learn's digits."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_profiles import catalogue
from safetensors.numpy import save


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_run(folder: Path, files: dict[str, bytes], **changes: Any) -> Path:
    """Write a run directory; `changes` replace fields of its record."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    record = {
        "spec_version": "1.0",
        "run": "digits-test-run",
        "model": "digits",
        "task": "classification",
        "labels": [str(i) for i in range(10)],
        "input": {"name": "x", "dtype": "FP32", "shape": [-1, 1, 8, 8]},
        "output": {"name": "logits", "dtype": "FP32", "shape": [-1, 10]},
        "seed": 7,
        "data": {"name": "digits", "options": {}, "fingerprint": "ab" * 32, "sizes": {"train": 1400}},
        "metrics": {"accuracy": 0.97},
        "gate": {"passed": True, "checks": []},
        "config_sha256": "cd" * 32,
        "parent": None,
        "mlflow_run_id": "none",
        "files": {name: sha256_hex(data) for name, data in files.items()},
        **changes,
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def train_digits() -> dict[str, bytes]:
    """Files of a run: a batch-normalised network that reaches about 97 per cent in three seconds."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.nn import functional

    class DigitsNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
            self.second = nn.Sequential(nn.Conv2d(12, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
            self.pool = nn.MaxPool2d(2)
            self.head = nn.Linear(24 * 4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.pool(self.first(x * (1 / 16)))
            return self.head(self.pool(self.second(x)).flatten(1))

    torch.manual_seed(7)
    digits = load_digits()
    x = digits.images[:, None].astype(np.float32)
    y = digits.target.astype(np.int64)
    order = np.random.default_rng(7).permutation(len(x))
    train, test = order[:1400], order[1400:]
    model = DigitsNet()
    xs, ys = torch.from_numpy(x[train]), torch.from_numpy(y[train])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(12):
        for batch in torch.randperm(len(xs)).split(32):
            optimizer.zero_grad()
            functional.cross_entropy(model(xs[batch]), ys[batch]).backward()
            optimizer.step()
    model.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    weights = {f"p.{n}": p.detach().numpy() for n, p in model.named_parameters()}
    weights |= {f"b.{n}": b.numpy() for n, b in model.named_buffers()}
    return {
        "model.pt2": buffer.getvalue(),
        "weights.safetensors": save({n: np.array(a) for n, a in weights.items()}),
        "data/reference.safetensors": save({"x": x[train][:800], "y": y[train][:800]}),
        "data/heldout.safetensors": save({"x": x[test], "y": y[test]}),
    }


@pytest.fixture(scope="session")
def run_files() -> dict[str, bytes]:
    return train_digits()


@pytest.fixture(scope="session")
def digits_run(run_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), run_files)


@pytest.fixture
def run_copy(digits_run: Path, tmp_path: Path) -> Path:
    """A run directory of the test's own, to damage."""
    return Path(shutil.copytree(digits_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def all_profiles() -> tuple[Any, ...]:
    """Those whose first form is a file of an engine, and not machine code."""
    return tuple(profile for profile in catalogue.load_all() if profile.targets[0].format in ("onnx", "tflite"))


class Workshop:
    """A run's model on the bench, its forms by name; each is made once."""

    def __init__(self, run: Path) -> None:
        from edgewise_converter.cache import Cache
        from edgewise_converter.hardware import read_host
        from edgewise_converter.search.bench import Bench
        from edgewise_converter.sources.opening import open_model
        from edgewise_converter.sources.reading import Wanted

        self.model = open_model(str(run), Wanted())
        self.bench = Bench(self.model, Cache(None), read_host())
        self.x, self.y = self.model.heldout.feeds["x"], self.model.y
        self.reference = self.model.calibration.feeds["x"]

    def _chosen(self, form: str, profile: str) -> Any:
        from edgewise_converter.search.searching import chosen

        return chosen(self.model, catalogue.load(profile), form)

    def make(self, form: str, profile: str = "x86-64-vnni") -> Any:
        """The form's artifact."""
        return self.bench.make(self._chosen(form, profile)).artifact

    def score(self, form: str, profile: str = "x86-64-vnni") -> Any:
        """How near it comes to its source on the held-out samples."""
        candidate = self._chosen(form, profile)
        return self.bench.score(candidate, self.bench.make(candidate))


@pytest.fixture(scope="session")
def workshop(digits_run: Path) -> Any:
    """One bench for all tests."""
    return Workshop(digits_run)


@pytest.fixture(scope="session")
def converted(digits_run: Path, all_profiles: tuple[Any, ...], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Outcomes of all profiles in their default forms, by profile, and what was told while converting."""
    from edgewise_converter.cache import Cache
    from edgewise_converter.search.converting import convert_model
    from edgewise_converter.search.request import Request

    told: list[tuple[str, float]] = []
    outcomes = convert_model(
        Request(model=str(digits_run), version=3, form="default"),
        all_profiles,
        tmp_path_factory.mktemp("bundles"),
        cache=Cache(None),
        progress=lambda stage, share: told.append((stage, share)),
    )
    return {outcome.profile: outcome for outcome in outcomes}, told
