"""What can be wrong with a profile: one small tree, each class with a stable `code`."""

from __future__ import annotations


class ProfileError(Exception):
    """Something about a target profile keeps it from being used."""

    code = "profile"


class ProfileSchemaError(ProfileError):
    """A profile's text is not TOML, or does not follow the schema."""

    code = "profile-schema"


class UnknownProfileError(ProfileError):
    """The catalogue holds no profile of that name."""

    code = "profile-unknown"


class NoTargetError(ProfileError):
    """The profile does not allow the form of model that was asked for."""

    code = "profile-no-target"


class NoMatchError(ProfileError):
    """No profile of the catalogue fits the device; the message says why for each."""

    code = "profile-no-match"
