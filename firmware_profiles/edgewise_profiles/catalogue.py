"""The catalogue: the boards that come with Edgewise, each one file under `boards/`."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from edgewise_profiles.errors import ProfileSchemaError, UnknownProfileError
from edgewise_profiles.schema import MAX_PROFILE_BYTES, Profile, parse

_SUFFIX = ".toml"


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """Ids of all profiles, in alphabetical order."""
    folder = files("edgewise_profiles") / "boards"
    return tuple(sorted(f.name.removesuffix(_SUFFIX) for f in folder.iterdir() if f.name.endswith(_SUFFIX)))


@lru_cache(maxsize=64)
def load(name: str) -> Profile:
    """The profile of that id.

    Raises:
        UnknownProfileError: there is none; the message lists those that there are.
        ProfileSchemaError: its file is not valid.
    """
    if name not in names():
        raise UnknownProfileError(f"there is no profile {name[:80]!r}; there are {', '.join(names())}")
    return parse((files("edgewise_profiles") / "boards" / f"{name}{_SUFFIX}").read_bytes(), name)


def load_file(path: Path) -> Profile:
    """A profile of one's own; the file's name without `.toml` is its id.

    Raises:
        ProfileSchemaError: it cannot be read or is not valid, or the catalogue has a profile of that id.
    """
    name = path.name.removesuffix(_SUFFIX)
    if name in names():
        raise ProfileSchemaError(f"{path}: the catalogue has a profile {name!r}; give the file a name of its own")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROFILE_BYTES + 1)
    except OSError as error:
        raise ProfileSchemaError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse(data, name)


def load_all() -> tuple[Profile, ...]:
    """Every profile, in order of id."""
    return tuple(load(name) for name in names())
