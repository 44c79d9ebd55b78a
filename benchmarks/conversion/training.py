"""The two models that are trained here, by Edgewise's trainer, and their float files for the peers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion.case import save
from conversion.fetching import say

_DIGITS = """
[model]
name = "digits"
factory = "digits_cnn"
[data]
name = "file"
options = { path = "digits-part.npz" }
[train]
epochs = 20
seed = 7
weight_decay = 5e-4
[tracking]
enabled = false
"""
_MNIST = """
[model]
name = "mnist"
factory = "mnist_cnn:build"
[data]
name = "file"
options = { path = "mnist-part.npz", add_channel = true }
[train]
epochs = 3
batch_size = 64
lr = 0.02
seed = 7
[tracking]
enabled = false
"""
_MNIST_TRAINED = 20_000
DIGITS_TRAINED, DIGITS_HELD, DIGITS_TEST = slice(0, 597), slice(597, 797), slice(797, None)


def digits(part: slice) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Some of scikit-learn's 1,797 digits, (N, 1, 8, 8) in 0..16, and labels; shuffled, always alike."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))[part]
    return x[order].reshape(-1, 1, 8, 8).astype(np.float32), y[order].astype(np.int64)


def digits_run(folder: Path) -> Path:
    """A run that trains on the first 597, and is judged, as Edgewise's search is, on the 200 after them."""
    if not (folder / "digits").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (x, y), (x_held, y_held) = digits(DIGITS_TRAINED), digits(DIGITS_HELD)
        save(folder / "digits-part.npz", {"x_train": x, "y_train": y, "x_test": x_held, "y_test": y_held})
    return _run(folder, "digits", _DIGITS)


def mnist_run(folder: Path, data: Path) -> Path:
    """A run on 20,000 of MNIST's training images; `data` is the .npz with all."""
    if not (folder / "mnist").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).parent / "mnist_cnn.py", folder)
        x, y = mnist_training(data)
        trained, held = slice(0, _MNIST_TRAINED), slice(_MNIST_TRAINED, _MNIST_TRAINED + 1000)
        save(
            folder / "mnist-part.npz",
            {"x_train": x[trained], "y_train": y[trained], "x_test": x[held], "y_test": y[held]},
        )
    return _run(folder, "mnist", _MNIST)


def mnist_training(data: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """MNIST's 60,000 training images and labels, shuffled, always alike: the file has them by label."""
    with np.load(data) as arrays:
        order = np.random.default_rng(0).permutation(len(arrays["y_train"]))
        return arrays["x_train"][order], arrays["y_train"][order].astype(np.int64)


def float_files(run: Path) -> dict[str, Path]:
    """The run's model as float ONNX and TFLite files, by format."""
    found = {form: run.parent / f"{run.name}.{form}" for form in ("onnx", "tflite")}
    if not all(path.exists() for path in found.values()):
        from edgewise_converter.passes.registry import PASSES
        from edgewise_converter.sources.opening import open_model

        model = open_model(str(run))
        for form, path in found.items():
            entry = PASSES[f"{form}_export"]
            config: Any = entry.config(**({"opset": 20} if form == "onnx" else {}))
            path.write_bytes(entry.load()(model.materials, None, config).data)
    return found


def _run(folder: Path, name: str, config: str) -> Path:
    from edgewise_trainer.api import train_from_file

    out = folder / name
    if not (out / "run.json").exists():
        say(f"training {name} ...")
        shutil.rmtree(out, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.toml").write_text(config)
        train_from_file(folder / f"{name}.toml", out)
    return out
