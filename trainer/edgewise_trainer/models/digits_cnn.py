"""A small convolutional network for the 8 x 8 digits: 26,000 parameters, folds well to int8."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from torch import Tensor, nn

PIXEL_MAX = 16.0


class DigitsCnnOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`[model.options]` of `digits_cnn`."""

    width: Annotated[int, Meta(ge=4, le=256)] = 16
    """Channels of the first block; the others have two and three times as many."""
    classes: Annotated[int, Meta(ge=2, le=10_000)] = 10


class DigitsCnn(nn.Module):
    """Raw pixels in 0..16, float32 (N, 1, 8, 8) -> logits (N, classes).

    Convolutions carry no bias: batch normalisation brings one, and folds into them.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.block1 = _block(1, width)
        self.block2 = _block(width, 2 * width)
        self.pool = nn.MaxPool2d(2)
        self.block3 = _block(2 * width, 3 * width)
        self.head = nn.Linear(3 * width * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x * (1.0 / PIXEL_MAX))
        x = self.pool(self.block2(x))
        x = self.pool(self.block3(x))
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )
