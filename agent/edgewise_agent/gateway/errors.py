"""What can go wrong between the gateway and its board."""

from __future__ import annotations

from edgewise_agent.engines.errors import InferenceError, ModelFileError


class BoardLinkError(InferenceError):
    """The board does not answer, or its line broke; it was tried as often as the settings say."""

    code = "board-link"


class BoardRefusedError(InferenceError):
    """The board answers that it will not; asking again does not help."""

    code = "board-refused"


class BoardFirmwareError(ModelFileError):
    """The board does not run the bundle's firmware, and cannot be given it."""

    code = "board-firmware"


class BoardBusyError(InferenceError):
    """Another model, or a self-test, has the board."""

    code = "board-busy"
