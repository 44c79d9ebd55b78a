"""Split a data set's training part among federated clients, by label.

The held-out part is never given to a client.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgewise_trainer.datasets.dataset import Dataset
from edgewise_trainer.durable import write_file
from edgewise_trainer.errors import DataError

MAX_CLIENTS: Final = 100_000
_DRAWS: Final = 200
"""Dirichlet draws before giving up on `min_samples`."""


@dataclass(frozen=True, kw_only=True)
class ClientData:
    """One client's own samples: x float32 (N, ...), y int64 (N,)."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


def split_by_label(
    dataset: Dataset, clients: int, seed: int, alpha: float | None = None, *, min_samples: int = 8
) -> tuple[ClientData, ...]:
    """Split `dataset`'s training part; every sample goes to exactly one client.

    Args:
        dataset: whose training part is split.
        clients: how many clients, at least 1.
        seed: the same seed gives the same split.
        alpha: `None` gives each client whole labels of its own (label shards, the hardest split;
            not more clients than labels). A positive number draws each label's shares from a
            Dirichlet distribution (Hsu, Qi, Brown 2019): 0.1 is nearly one client a label, 1 is
            visibly skewed, 100 nearly even.
        min_samples: smallest part that a client may get; the Dirichlet draw is repeated until it holds.

    Raises:
        DataError: the arguments are out of range, or no such split was found.
    """
    labels = len(dataset.labels)
    if not 1 <= clients <= min(MAX_CLIENTS, len(dataset.y_train)):
        raise DataError(f"{len(dataset.y_train)} samples cannot be split among {clients} clients")
    random = np.random.default_rng([seed, clients])
    if alpha is None:
        if clients > labels:
            raise DataError(f"label shards give {labels} labels to at most {labels} clients, not {clients}")
        shares = np.zeros((labels, clients))
        for client, group in enumerate(np.array_split(random.permutation(labels), clients)):
            shares[group, client] = 1.0
        parts = _deal(dataset.y_train, shares, random)
        if min(map(len, parts)) < min_samples:
            raise DataError(f"label shards leave a client with fewer than {min_samples} samples")
    else:
        if not 0 < alpha < 1e6:
            raise DataError(f"alpha must be positive, not {alpha}")
        for _ in range(_DRAWS):
            parts = _deal(dataset.y_train, random.dirichlet([alpha] * clients, labels), random)
            if min(map(len, parts)) >= min_samples:
                break
        else:
            raise DataError(f"no split with at least {min_samples} samples a client in {_DRAWS} draws; raise alpha")
    return tuple(ClientData(x=dataset.x_train[part], y=dataset.y_train[part]) for part in parts)


def write_samples(path: Path, data: ClientData) -> None:
    """Write a client's samples as safetensors (`x`, `y`), the form that a device trains from."""
    write_file(path, encode_samples(data))


def encode_samples(data: ClientData) -> bytes:
    """Safetensors with `x` and `y`; equal samples give equal bytes."""
    from safetensors.numpy import save

    encoded: bytes = save({"x": np.ascontiguousarray(data.x), "y": np.ascontiguousarray(data.y)})
    return encoded


def _deal(y: NDArray[np.int64], shares: NDArray[np.float64], random: np.random.Generator) -> list[NDArray[np.int64]]:
    """Deal each label's samples by its row of `shares` (labels, clients); parts come back shuffled."""
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(shares.shape[1])]
    for label, row in enumerate(shares):
        members = random.permutation(np.flatnonzero(y == label)).astype(np.int64)
        cuts = np.rint(np.cumsum(row)[:-1] * len(members)).astype(np.int64)
        for client, piece in enumerate(np.split(members, cuts)):
            parts[client].append(piece)
    return [random.permutation(np.concatenate(pieces)) for pieces in parts]
