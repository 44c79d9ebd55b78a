"""Agent bundles, made from wheels: deterministic, so that equal wheels give a bundle of the same digest."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Final

from edgewise_profiles.schema import Profile
from edgewise_protocol.agent import LAUNCHER_VERSION, bundle_number
from edgewise_protocol.bounds import MAX_BUNDLE_FILES, MIB
from edgewise_protocol.bundle import file_entry, write_bundle
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import AGENT_MODEL, SPEC_VERSION, AgentSpec, Manifest, Requirements, WheelSpec
from packaging.utils import canonicalize_name

from edgewise_cli.errors import FilesError, RefusedError, UsageError

ANY: Final = "any"
"""The profile of a bundle for every board."""
NEEDED: Final = ("edgewise-agent", "edgewise-protocol")
"""What the agent's own code is; the rest may come from the base installation."""
_MAX_WHEEL_BYTES: Final = 512 * MIB
_MAX_HEADER_BYTES: Final = 1 * MIB


def read_wheel(path: Path) -> tuple[WheelSpec, str, bytes]:
    """What a wheel says of itself, its `Requires-Python`, and its bytes.

    Raises:
        FilesError: it cannot be read.
        RefusedError: it is not a wheel (PEP 427).
    """
    try:
        if path.stat().st_size > _MAX_WHEEL_BYTES:
            raise RefusedError(f"{path.name} is larger than {_MAX_WHEEL_BYTES // MIB} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise FilesError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            wheel, metadata = (_headers(archive, name) for name in ("WHEEL", "METADATA"))
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise RefusedError(f"{path.name} is not a wheel: {error}") from error
    name, version, tags = metadata.get("name", [""])[0], metadata.get("version", [""])[0], wheel.get("tag", [])
    if not (name and version and tags):
        raise RefusedError(f"{path.name} is not a wheel: it does not say its name, version and tags")
    distribution = canonicalize_name(name)
    spec = WheelSpec(file=f"{distribution}.whl", distribution=distribution, version=version, tags=tuple(sorted(tags)))
    return spec, metadata.get("requires-python", [""])[0], data


def metadata_of(path: Path) -> Mapping[str, list[str]]:
    """The headers of a wheel's METADATA by lower-case name; raises `RefusedError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _headers(archive, "METADATA")
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise RefusedError(f"{path.name} is not a wheel: {error}") from error


def build_agent(wheels: Sequence[Path], profile: Profile | None, number: int | None = None) -> tuple[Manifest, bytes]:
    """A bundle of kind `agent` from wheels: those of `NEEDED`, and any number of others.

    Args:
        profile: the boards that it is for; None for all.
        number: the bundle's; taken from the agent's version if it is a final release.

    Raises:
        UsageError: wheels are missing, twice there or too many, or the number must be given.
        FilesError, RefusedError: a wheel cannot be used.
    """
    found: dict[str, tuple[WheelSpec, str, bytes]] = {}
    for path in wheels:
        entry = read_wheel(path)
        if found.setdefault(entry[0].distribution, entry) is not entry:
            raise UsageError(f"two wheels of {entry[0].distribution} are given; a bundle holds one")
    if missing := [name for name in NEEDED if name not in found]:
        raise UsageError(f"the wheel of {missing[0]} is missing: build it with `pip wheel --no-deps`")
    if len(found) > MAX_BUNDLE_FILES:
        raise UsageError(f"{len(found)} wheels are given; a bundle holds at most {MAX_BUNDLE_FILES}")
    agent, python, _ = found["edgewise-agent"]
    files = {spec.file: data for spec, _, data in found.values()}
    try:
        manifest = Manifest(
            spec_version=SPEC_VERSION,
            kind="agent",
            model=AGENT_MODEL,
            version=bundle_number(agent.version) if number is None else number,
            profile=ANY if profile is None else profile.id,
            requires=_requires(profile),
            files=tuple(file_entry(name, data) for name, data in sorted(files.items())),
            agent=AgentSpec(
                version=agent.version,
                wheels=tuple(spec for _, (spec, _, _) in sorted(found.items())),
                requires_python=python,
                launcher_min=LAUNCHER_VERSION,
            ),
        )
        out = io.BytesIO()
        write_bundle(out, manifest, files)
    except ProtocolError as error:
        raise UsageError(f"{error} (--number)" if number is None else str(error)) from error
    return manifest, out.getvalue()


def _requires(profile: Profile | None) -> Requirements:
    if profile is None:
        return Requirements()
    return Requirements(compatible=profile.all_compatible, machine=profile.machine)


def _headers(archive: zipfile.ZipFile, name: str) -> Mapping[str, list[str]]:
    """The headers of a file of the wheel's `.dist-info`, by lower-case name."""
    paths = [p for p in archive.namelist() if p.count("/") == 1 and p.endswith(f".dist-info/{name}")]
    if len(paths) != 1:
        raise ValueError(f"it holds {len(paths)} files {name}")
    with archive.open(paths[0]) as stream:
        message = BytesHeaderParser().parsebytes(stream.read(_MAX_HEADER_BYTES))
    found: dict[str, list[str]] = {}
    for key, value in message.items():
        found.setdefault(key.lower(), []).append(str(value).strip())
    return found
