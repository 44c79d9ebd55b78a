"""Pictures out of packages: crops of the photographs of scikit-image and scikit-learn, and faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_PHOTOGRAPHS: Final = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)
_FACE: Final = (150, 20, 300, 200)
"""Left, top, right, bottom of the astronaut's face."""


def photographs(package: Path) -> list[Any]:
    """All photographs, as PIL images in RGB; `package` is the unpacked wheel of scikit-image."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder = package / "skimage" / "data"
    found = [Image.open(folder / name).convert("RGB") for name in _PHOTOGRAPHS]
    return found + [Image.fromarray(pixels) for pixels in load_sample_images().images]


def crops(package: Path, side: int, count: int, seed: int) -> NDArray[np.float32]:
    """Squares (count, side, side, 3) in 0..255: random places, sizes, mirrored or not, lighter or darker."""
    random = np.random.default_rng(seed)
    pictures = photographs(package)
    return np.stack([_lit(_square(pictures[i % len(pictures)], side, random), random) for i in range(count)])


def faces(package: Path, side: int, count: int, seed: int) -> NDArray[np.float32]:
    """Squares (count, side, side, 3) in 0..255: a third show the astronaut's face, a third one of 100 faces
    (Labeled Faces in the Wild, 25 x 25, grey) within a photograph, the others none."""
    from PIL import Image

    random = np.random.default_rng(seed)
    pictures = photographs(package)
    small = np.load(package / "skimage" / "data" / "lfw_subset.npy")[:100]
    found = []
    for i in range(count):
        if i % 3 == 0:
            picture = pictures[0].resize((side, side), Image.Resampling.BILINEAR, box=_around(_FACE, random))
        else:
            picture = Image.fromarray(_square(pictures[i % len(pictures)], side, random).astype(np.uint8))
        if i % 3 == 1:
            grey = np.repeat((small[i % 100] * 255).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
            size = int(random.integers(side // 4, side))
            left, top = random.integers(0, side - size + 1, 2)
            picture.paste(Image.fromarray(grey).resize((size, size)), (int(left), int(top)))
        found.append(_lit(np.asarray(picture, np.float32), random))
    return np.stack(found)


def _square(picture: Any, side: int, random: np.random.Generator) -> NDArray[np.float32]:
    from PIL import Image, ImageOps

    width, height = picture.size
    size = min(width, height) * random.uniform(0.25, 1.0)
    left, top = random.uniform(0, width - size), random.uniform(0, height - size)
    cut = picture.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + size, top + size))
    return np.asarray(ImageOps.mirror(cut) if random.random() < 0.5 else cut, np.float32)


def _around(box: tuple[int, int, int, int], random: np.random.Generator) -> tuple[float, float, float, float]:
    """A square that holds the box somewhere, within 512 x 512."""
    left, top, right, bottom = box
    size = (bottom - top) * random.uniform(1.1, 2.5)
    x = np.clip(random.uniform(right - size, left), 0, 512 - size)
    y = np.clip(random.uniform(bottom - size, top), 0, 512 - size)
    return float(x), float(y), float(x + size), float(y + size)


def _lit(pixels: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    return (pixels * np.float32(random.uniform(0.6, 1.2))).clip(0, 255).astype(np.float32)
