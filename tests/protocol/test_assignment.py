"""Danger: a device acts on an assignment, or trains for an offer, that was not meant for it."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from edgewise_protocol.assignment import (
    Accepted,
    AssignmentBody,
    build_assignment,
    check_floor,
    check_signed_as_named,
    verify_assignment,
)
from edgewise_protocol.errors import (
    AssignmentError,
    AssignmentJumpError,
    BelowFloorError,
    ExpiredAssignmentError,
    MalformedError,
    OfferError,
    ProtocolError,
    StaleAssignmentError,
    UnknownTargetError,
    UnsignedAssignmentError,
    UnsupportedVersionError,
    WrongChannelError,
    WrongDeviceError,
)
from edgewise_protocol.metadata import NOT_METADATA, encode_metadata, keys_digest
from edgewise_protocol.rounds import OfferBody, build_offer, verify_offer
from edgewise_protocol.targets import DIRECTOR, OFFERS, ROUNDS, SignedFile, TargetCustom, bundle_path, channel_of
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Targets

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DIRECTOR_KEY, ROUNDS_KEY, OFFERS_KEY, OTHER_KEY = (CryptoSigner.generate_ed25519() for _ in range(4))


def trusted(floors: dict[str, int] | None = None, director: CryptoSigner = DIRECTOR_KEY) -> Targets:
    keys = {k.public_key.keyid: k.public_key for k in (director, ROUNDS_KEY, OFFERS_KEY)}
    roles = {
        DIRECTOR: DelegatedRole(DIRECTOR, [director.public_key.keyid], 1, False, ["dev/*"]),
        OFFERS: DelegatedRole(OFFERS, [OFFERS_KEY.public_key.keyid], 1, False, []),
        ROUNDS: DelegatedRole(ROUNDS, [ROUNDS_KEY.public_key.keyid], 1, False, ["rounds/*/*/*"]),
    }
    extra = {"edgewise": {"floors": floors}} if floors else {}
    return Targets(delegations=Delegations(keys, roles), unrecognized_fields=extra)


def a_file(path: str = "lab/digits/x86-64/3.ewb", kind: str = "inference", version: int = 3) -> SignedFile:
    custom = TargetCustom(chunk_index="b" * 64, kind=kind, model="digits", version=version, profile="x86-64")
    return SignedFile(path=path, length=10, sha256="a" * 64, custom=custom)


def a_model(n: int) -> SignedFile:
    file = a_file(f"lab/m{n}/x86-64/3.ewb")
    return msgspec.structs.replace(file, custom=msgspec.structs.replace(file.custom, model=f"m{n}"))


def assignment(
    device: str = "dev-1",
    channel: str = "lab",
    version: int = 5,
    files: tuple[SignedFile, ...] = (a_file(),),
    expires: datetime = NOW + timedelta(days=1),
    key: CryptoSigner | None = DIRECTOR_KEY,
) -> bytes:
    body = AssignmentBody(device=device, channel=channel, confirm_within_s=600)
    metadata = build_assignment(body, files, version=version, expires=expires)
    if key:
        metadata.sign(key)
    return encode_metadata(metadata)


def verify(data: bytes, accepted: int = 0, **options: bool) -> object:
    return verify_assignment(
        data, trusted(), device_id="dev-1", channel="lab", now=NOW, accepted=Accepted(accepted), **options
    )


def test_a_good_assignment_is_accepted_again_and_again() -> None:
    found = verify_assignment(assignment(), trusted(), device_id="dev-1", channel="lab", now=NOW, accepted=Accepted(5))
    assert (found.version, found.bundles) == (5, (a_file(),))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (assignment(key=None), UnsignedAssignmentError),
        (assignment(key=OTHER_KEY), UnsignedAssignmentError),
        (assignment(key=ROUNDS_KEY), UnsignedAssignmentError),
        (assignment(key=OFFERS_KEY), UnsignedAssignmentError),
        (assignment(version=5 + 2**20 + 1), AssignmentJumpError),
        (assignment(device="dev-2"), WrongDeviceError),
        (assignment(version=4), StaleAssignmentError),
        (assignment(expires=NOW), ExpiredAssignmentError),
        (assignment(channel="production"), WrongChannelError),
        (assignment(files=(a_file("production/digits/x86-64/3.ewb"),)), WrongChannelError),
        (assignment(files=(a_file(), a_file("lab/digits/other/3.ewb"))), AssignmentError),
        (assignment(files=(a_file("rounds/lab/digits/3.ewb"),)), AssignmentError),
        (assignment(files=(a_file("lab/digits/x86-64/3.ewb", kind="training"),)), AssignmentError),
        (assignment(files=(a_file("lab/digits/x86-64/3.ewb", version=4),)), AssignmentError),
        (assignment(files=tuple(a_model(n) for n in range(65))), AssignmentError),
        (b"{}", MalformedError),
        (b"[" * 60_000, MalformedError),
        (b" " * 70_000, MalformedError),
    ],
)
def test_each_wrong_assignment_is_refused_by_its_cause(data: bytes, error: type[ProtocolError]) -> None:
    with pytest.raises(error) as caught:
        verify(data, accepted=5)
    assert caught.type is error


def test_a_version_may_be_far_above_the_last_but_not_out_of_reach() -> None:
    verify(assignment(version=5 + 2**20), accepted=5)
    verify(assignment(version=2**53))
    with pytest.raises(AssignmentJumpError):
        verify(assignment(version=2**53 + 1))


def test_what_a_stolen_director_signed_binds_its_successor_no_more() -> None:
    """Fast-forward recovery: the version counts under the keys that it was accepted under."""
    mine = {"device_id": "dev-1", "channel": "lab", "now": NOW}
    forged = verify_assignment(assignment(version=2**50), trusted(), accepted=Accepted(), **mine)
    remembered = Accepted(forged.version, forged.keys)
    with pytest.raises(StaleAssignmentError):
        verify_assignment(assignment(version=6), trusted(), accepted=remembered, **mine)
    found = verify_assignment(
        assignment(version=6, key=OTHER_KEY), trusted(director=OTHER_KEY), accepted=remembered, **mine
    )
    assert (found.version, found.keys) == (6, keys_digest(trusted(director=OTHER_KEY), DIRECTOR))
    # A state file of an older agent tells no keys: nothing is forgotten.
    with pytest.raises(StaleAssignmentError):
        verify_assignment(assignment(version=6), trusted(), accepted=Accepted(7), **mine)


def test_the_digest_of_a_role_changes_with_its_keys_alone() -> None:
    digest = keys_digest(trusted(), DIRECTOR)
    assert digest == keys_digest(trusted({"digits": 4}), DIRECTOR)
    assert len({digest, keys_digest(trusted(director=OTHER_KEY), DIRECTOR), keys_digest(trusted(), ROUNDS)}) == 3
    assert keys_digest(Targets(), DIRECTOR) not in (digest, "")


def test_a_changed_signed_field_is_unsigned() -> None:
    raw = msgspec.json.decode(assignment())
    raw["signed"]["version"] = 9
    with pytest.raises(UnsignedAssignmentError):
        verify(msgspec.json.encode(raw))


def test_what_has_no_form_that_could_be_signed_is_unsigned() -> None:
    """Canonical JSON knows no floats: python-tuf fails before it comes to the signatures."""
    raw = msgspec.json.decode(assignment())
    raw["signed"]["any"] = 0.5
    with pytest.raises(UnsignedAssignmentError):
        verify(msgspec.json.encode(raw))
    raw = msgspec.json.decode(offer())
    raw["signed"]["any"] = 0.5
    with pytest.raises(OfferError):
        verify_offer(msgspec.json.encode(raw), trusted(), device_id="dev-1", channel="lab", now=NOW)


def test_an_expired_assignment_may_still_revert() -> None:
    verify(assignment(expires=NOW - timedelta(days=9)), allow_expired=True)


def test_an_unknown_major_version_is_refused() -> None:
    body = AssignmentBody(device="dev-1", channel="lab", confirm_within_s=1, spec_version="2.0")
    metadata = build_assignment(body, (), version=1, expires=NOW + timedelta(days=1))
    metadata.sign(DIRECTOR_KEY)
    with pytest.raises(UnsupportedVersionError):
        verify(encode_metadata(metadata))


def test_a_file_must_be_signed_as_it_was_assigned() -> None:
    check_signed_as_named(a_file(), a_file())
    with pytest.raises(UnknownTargetError, match="no trusted role"):
        check_signed_as_named(a_file(), None)
    with pytest.raises(UnknownTargetError, match="another digest"):
        check_signed_as_named(a_file(), msgspec.structs.replace(a_file(), sha256="c" * 64))
    with pytest.raises(UnknownTargetError, match="another model or version"):
        check_signed_as_named(a_file(version=9), a_file())


def test_the_signed_floor_holds_whoever_assigns() -> None:
    check_floor(a_file(version=4), trusted({"digits": 4}))
    check_floor(a_file(version=1), trusted())
    with pytest.raises(BelowFloorError):
        check_floor(a_file(version=3), trusted({"digits": 4}))


@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_refused_with_our_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        verify(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["_type", "version", "expires", "targets", "spec_version", "edgewise", "delegations"]), JSON)
def test_a_signed_part_of_any_shape_is_refused_or_says_the_same(field: str, value: object) -> None:
    raw = msgspec.json.decode(assignment())
    raw["signed"][field] = value
    try:
        found = verify(msgspec.json.encode(raw))
    except ProtocolError:
        return
    assert found == verify(assignment())


def offer(key: CryptoSigner = OFFERS_KEY, expires: datetime = NOW + timedelta(hours=1), **changes: object) -> bytes:
    fields: dict[str, object] = {
        "round_id": "f1-1", "federation": "f1", "number": 1, "channel": "lab", "model": "digits",
    }  # fmt: skip
    body = OfferBody(**{**fields, **changes})  # type: ignore[arg-type]
    files = (a_file("rounds/lab/digits/1.ewb", "training"), a_file("rounds/lab/digits/f1-1.safetensors", "weights"))
    metadata: Metadata[Targets] = build_offer(body, *files, expires=expires)
    metadata.sign(key)
    return encode_metadata(metadata)


def test_a_good_offer_is_read() -> None:
    found = verify_offer(offer(), trusted(), device_id="dev-1", channel="lab", now=NOW)
    assert found.training.path == "rounds/lab/digits/1.ewb"
    assert found.body.epochs == 1


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (offer(key=DIRECTOR_KEY), "not signed"),
        (offer(key=ROUNDS_KEY), "not signed"),
        (offer(expires=NOW), "expired"),
        (offer(channel="production"), "channel"),
        (offer(devices=("dev-2",)), "other devices"),
    ],
)
def test_each_wrong_offer_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(OfferError, match=match):
        verify_offer(data, trusted(), device_id="dev-1", channel="lab", now=NOW)


def test_a_channel_is_part_of_the_path() -> None:
    assert channel_of(bundle_path("lab", "digits", "x86-64", 3)) == "lab"
    assert channel_of("rounds/lab/digits/1.ewb") == "lab"
    with pytest.raises(ProtocolError, match="reserved"):
        bundle_path("rounds", "digits", "x86-64", 3)


@given(st.sampled_from(["assignment", "offer"]), st.sampled_from(["edgewise", "targets"]), JSON, st.booleans())
def test_what_a_stolen_key_signs_is_refused_or_read_whatever_its_shape(
    kind: str, field: str, value: object, inside: bool
) -> None:
    """Past the signature, too, the decoders answer with our errors alone."""
    raw = msgspec.json.decode(assignment() if kind == "assignment" else offer())
    if inside:
        part = raw["signed"][field]
        part[next(iter(part))] = value
    else:
        raw["signed"][field] = value
    try:
        metadata: Metadata[Targets] = Metadata.from_dict(raw)
        metadata.sign(DIRECTOR_KEY if kind == "assignment" else OFFERS_KEY)
    except NOT_METADATA:
        return
    with contextlib.suppress(ProtocolError):
        if kind == "assignment":
            verify(encode_metadata(metadata))
        else:
            verify_offer(encode_metadata(metadata), trusted(), device_id="dev-1", channel="lab", now=NOW)


@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_no_offer(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        verify_offer(data, trusted(), device_id="dev-1", channel="lab", now=NOW)
