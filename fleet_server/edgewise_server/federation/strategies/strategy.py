"""What every aggregation strategy is: fed one update at a time, in bounded memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from edgewise_server.federation.updates import Vector


@dataclass(frozen=True, slots=True)
class Added:
    """What became of one update. `norm` is the L2 norm of the change of its parameters, before clipping."""

    norm: float
    clipped: bool


class Strategy(ABC):
    """Aggregates the updates of one round."""

    def __init__(self, start: Vector, parameters: int, clip_norm: float | None = None) -> None:
        """Begin a round.

        Args:
            start: the round's global weights, shape (S,); not changed.
            parameters: length of the leading part that holds parameters; the rest are buffers.
            clip_norm: longest L2 norm of a client's change of the parameters; None does not clip.
        """
        self.start = start
        self.parameters = parameters
        self.clip_norm = clip_norm

    @abstractmethod
    def add(self, update: Vector, samples: int) -> Added:
        """Take in one client's weights, shape (S,). `update` may be overwritten.

        Raises:
            UpdateError: it holds NaN, infinite or absurdly large values; nothing was taken in.
        """

    @abstractmethod
    def result(self) -> Vector:
        """The new global weights, shape (S,).

        Raises:
            UpdateError: no update was taken in.
        """
