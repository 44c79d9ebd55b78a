"""Whether a bundle's golden answers were found again on the target's own instruction set."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
from edgewise_profiles.schema import Profile
from edgewise_protocol.manifest import Numerics

from edgewise_converter.bundling import Contents
from edgewise_converter.errors import ProofMissingError

Progress = Callable[[str, float], None]


class Proven(NamedTuple):
    """A bundle with what its numbers were seen to hold for."""

    contents: Contents
    failed: str = ""
    """How its answers differ there; empty where they do not, or were not asked for."""
    unproven: str = ""
    """Why it was not run there, and what to do; empty where it was."""


def prove(contents: Contents, profile: Profile, wanted: str, progress: Progress | None = None) -> Proven:
    """Run a bundle's golden inputs on the profile's instruction set, natively or emulated.

    Args:
        contents: the bundle.
        profile: the target.
        wanted: `never` skips; `auto` runs it where this machine can; `always` refuses what it cannot.
        progress: called with what is being done, and the share that is behind.

    Raises:
        ProofMissingError: it must be run, and cannot be.
    """
    from edgewise_converter.proof.prove import prove_contents

    if wanted == "never":
        return Proven(contents, unproven=f"the bundle was not run on {profile.machine}: --prove never was asked for")
    try:
        verdict = prove_contents(contents.manifest, contents.files, profile, mode="auto", progress=progress)
    except ProofMissingError as error:
        return Proven(contents, failed=str(error))
    if wanted == "always" and not verdict.passed:
        raise ProofMissingError(f"the bundle for {profile.id} was not run on its instruction set: {verdict.why_not}")
    numerics = msgspec.structs.replace(contents.manifest.numerics or Numerics(), proofs=verdict.proofs)
    proven = contents._replace(manifest=msgspec.structs.replace(contents.manifest, numerics=numerics))
    return Proven(proven, unproven=verdict.why_not)
