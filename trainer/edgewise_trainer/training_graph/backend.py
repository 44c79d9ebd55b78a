"""Torch's backends held still while a step is traced, exported or run as a witness."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def plain_operators() -> Iterator[None]:
    """No mkldnn, which puts in operators of its own, and attention in its mathematical form.

    `torch.backends.mkldnn.flags` would do, but also sets a flag for GPUs that warns without one.
    """
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep torch's exporters from reporting their own deprecations and absent optional packages.

    What they write is proven by the gates; what they cannot write, they raise.
    """
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
