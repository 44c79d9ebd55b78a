"""The demo's data: scikit-learn's digits as the training run splits them, turned ones, and the devices' parts."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from edgewise_trainer.datasets import Dataset, load, split_by_label, write_samples


@cache
def base(config: Path) -> Dataset:
    """What the base model is trained and tested on."""
    section = tomllib.loads(config.read_text())["data"]
    return load(section["name"], section["options"])


@cache
def turned(config: Path) -> Dataset:
    """The devices' domain, which the base model never saw."""
    section = tomllib.loads(config.read_text())["federation"]["data"]
    return load(section["name"], section["options"])


def write_parts(config: Path, folder: Path, names: list[str]) -> dict[str, list[int]]:
    """Write each device's own training samples, split by label; returns the labels of each."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {}
    for name, part in zip(names, split_by_label(turned(config), len(names), seed=7), strict=True):
        write_samples(folder / f"{name}.safetensors", part)
        labels[name] = sorted({int(v) for v in part.y})
    return labels
