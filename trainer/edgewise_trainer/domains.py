"""The data of a run: the base domain, and the devices' domain that federated results are judged on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgewise_trainer.config import DataSection, TrainConfig
from edgewise_trainer.datasets import Dataset, load
from edgewise_trainer.datasets.dataset import check_disjoint
from edgewise_trainer.errors import DataError
from edgewise_trainer.record import DataRecord


def load_domains(config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """The base data, and the devices' domain where the configuration has one.

    Raises:
        DataError: the two differ in shape or labels, or one trains on what the other holds out.
    """
    folder = Path(config.folder)
    base = load(config.data.name, config.data.options, folder=folder)
    section = config.federation.data
    if section is None:
        return base, None
    domain = load(section.name, section.options, folder=folder)
    if domain.labels != base.labels or domain.sample_shape != base.sample_shape:
        raise DataError("[federation.data] must have the labels and the sample shape of [data]")
    check_disjoint(base, domain)
    check_disjoint(domain, base)
    return base, domain


def reference_sample(parts: list[Dataset], limit: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Up to `limit` training samples, an equal share from each data set, drawn without repetition."""
    xs, ys = [], []
    for number, data in enumerate(parts):
        share = min(limit // len(parts), len(data.y_train))
        chosen = np.sort(np.random.default_rng([seed, number]).permutation(len(data.y_train))[:share])
        xs.append(data.x_train[chosen])
        ys.append(data.y_train[chosen])
    return np.concatenate(xs), np.concatenate(ys)


def describe(section: DataSection, data: Dataset) -> DataRecord:
    """The data set's entry in `run.json`; of a path only the file's name is kept."""
    options = {key: _last_part(value) if key == "path" else value for key, value in section.options.items()}
    return DataRecord(name=section.name, options=options, fingerprint=data.fingerprint, sizes=data.sizes)


def _last_part(path: object) -> str:
    return str(path).replace("\\", "/").rsplit("/", 1)[-1]
