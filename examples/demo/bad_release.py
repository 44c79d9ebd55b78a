"""A release that is well formed and properly signed, and whose self-test must fail on the device."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from edgewise_protocol.bundle import BundleReader, file_entry, write_bundle
from safetensors.numpy import load, save


def make(good: Path, out: Path, version: int) -> list[Path]:
    """Copies of the inference bundles in `good`: another version, and golden outputs that the model does not give."""
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for path in sorted(good.glob("*.ewb")):
        with path.open("rb") as stream:
            reader = BundleReader(stream)
            manifest = reader.manifest
            if manifest.kind != "inference" or manifest.golden is None:
                continue
            files = {entry.name: reader.read(entry.name) for entry in manifest.files}
        golden = dict(load(files[manifest.golden.file]))
        for name in golden:
            if name.startswith("output."):
                golden[name] = np.ascontiguousarray(-golden[name])
        files[manifest.golden.file] = save(golden)
        changed = msgspec.structs.replace(
            manifest, version=version, files=tuple(file_entry(n, files[n]) for n in (e.name for e in manifest.files))
        )
        target = out / f"{manifest.model}-{version}-{manifest.profile}.ewb"
        with target.open("wb") as stream:
            write_bundle(stream, changed, files)
        made.append(target)
    return made
