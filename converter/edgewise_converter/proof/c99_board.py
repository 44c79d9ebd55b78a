"""Golden inputs on an emulated board: firmware is proven whole, in `qemu-system-arm`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from edgewise_profiles.schema import Profile
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import Manifest

from edgewise_converter.c99 import proving
from edgewise_converter.errors import ModelFileError, NoEmulationError
from edgewise_converter.proof.running import Answer, Told


class Golden(Protocol):
    """A bundle's model and golden inputs."""

    @property
    def manifest(self) -> Manifest: ...
    @property
    def model(self) -> bytes: ...
    @property
    def inputs(self) -> Mapping[str, Any]: ...


def answer(what: Golden, profile: Profile) -> Answer:
    """Run golden inputs on the profile's board.

    Raises:
        NoEmulationError: the bundle has no image, or there is no emulator here.
        ModelFileError: the model file is damaged, or is not what the manifest says.
        FirmwareRunError: the board does not answer, or runs another firmware than the file describes.
    """
    try:
        why = proving.why_not(what.model, profile)
    except ProtocolError as error:
        raise ModelFileError(str(error)) from error
    if why:
        raise NoEmulationError(why)
    begun = time.perf_counter()
    feeds = {spec.name: what.inputs[spec.name] for spec in what.manifest.inputs}
    found, stats = proving.run(what.model, profile, feeds)
    seconds = time.perf_counter() - begun
    if len(found) != len(what.manifest.outputs):
        raise ModelFileError(f"the firmware has {len(found)} outputs; the manifest names {len(what.manifest.outputs)}")
    shaped = dict(zip((spec.name for spec in what.manifest.outputs), found.values(), strict=True))
    told = Told(machine=profile.machine, version="1", run_s=seconds)
    log = f"stack {stats.stack_peak} of {stats.stack_bytes} bytes, arena {stats.arena_bytes} bytes"
    return Answer(told, shaped, seconds, log)
