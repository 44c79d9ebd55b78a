"""The network that is trained on MNIST: 28 x 28, four convolutions, 10 classes."""

from __future__ import annotations

from torch import nn


def build() -> nn.Module:
    """Raw pixels 0..255, float32 (N, 1, 28, 28) -> logits (N, 10)."""
    layers: list[nn.Module] = [nn.BatchNorm2d(1)]
    before = 1
    for width, pool in ((16, False), (32, True), (32, False), (64, True)):
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 7 * 7, 10))
