"""Scikit-learn's handwritten digits (UCI ML hand-written digits, 1,797 images of 8 x 8), upright or rotated.

The split depends on `seed` and `test_fraction` alone: the rotated domain holds out the same
originals as the upright one, so no held-out image is ever trained on, turned or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edgewise_trainer.config import Seed
from edgewise_trainer.datasets.dataset import Dataset, stratified_split
from edgewise_trainer.errors import ConfigError
from edgewise_trainer.strict import read_section

ORIGIN: Final = "sklearn-digits"
PIXEL_MAX: Final = 16.0
_ANGLE_STREAM: Final = 0x726F74
"""Keeps the angles independent of the split, which draws from the same seed."""


class DigitsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`[data.options]` of `digits`."""

    test_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    seed: Seed = 0
    rotate_degrees: tuple[float, float] | None = None
    """Each image is turned counter-clockwise by an angle drawn from this range."""


def load_digits(options: dict[str, Any], folder: Path) -> Dataset:
    """The digits: x float32 (N, 1, 8, 8) in 0..16, y int64."""
    chosen = read_section(options, DigitsOptions, "[data.options] of digits")
    x, y = _images()
    if chosen.rotate_degrees is not None:
        x = rotate(x, chosen.rotate_degrees, chosen.seed)
    train, test = stratified_split(y, chosen.test_fraction, chosen.seed)
    return Dataset(
        x_train=x[train],
        y_train=y[train],
        x_test=x[test],
        y_test=y[test],
        labels=tuple(str(n) for n in range(10)),
        origin=ORIGIN,
        train_ids=train,
        test_ids=test,
    )


def rotate(x: NDArray[np.float32], degrees: tuple[float, float], seed: int) -> NDArray[np.float32]:
    """Turn each image of `x`, shape (N, C, H, W), by an angle drawn evenly from `degrees`; bilinear.

    Raises:
        ConfigError: the range is not ascending or beyond -360..360.
    """
    from scipy import ndimage  # type: ignore[import-untyped]

    low, high = degrees
    if not -360 <= low <= high <= 360:
        raise ConfigError(f"rotate_degrees must be an ascending range within -360..360, not {list(degrees)}")
    angles = np.random.default_rng([seed, _ANGLE_STREAM]).uniform(low, high, len(x))
    turned: list[NDArray[np.float32]] = [
        ndimage.rotate(image, angle, axes=(1, 2), reshape=False, order=1, mode="constant", cval=0.0)
        for image, angle in zip(x, angles, strict=True)
    ]
    return np.clip(np.stack(turned), 0.0, PIXEL_MAX).astype(np.float32)


def _images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits as load_bundled

    pixels, classes = load_bundled(return_X_y=True)
    return pixels.reshape(-1, 1, 8, 8).astype(np.float32), classes.astype(np.int64)
