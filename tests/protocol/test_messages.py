"""Danger: a message from outside that is too long, of the wrong shape, or of a later major version."""

from __future__ import annotations

import msgspec
import pytest
from edgewise_protocol.bounds import MAX_CONTROL_BYTES
from edgewise_protocol.enrolment import decode_enrolment
from edgewise_protocol.errors import MalformedError, ProtocolError, UnsupportedVersionError
from edgewise_protocol.facts import DeviceFacts, fits, version_tuple
from edgewise_protocol.manifest import Manifest, Requirements
from edgewise_protocol.messages import (
    Ack,
    Drift,
    Event,
    Message,
    Reported,
    Status,
    Telemetry,
    UpdateReady,
    Want,
    decode,
    encode,
)
from hypothesis import given
from hypothesis import strategies as st

KINDS: list[type[Message]] = [Ack, Drift, Event, Reported, Status, Telemetry, UpdateReady, Want]


@given(st.sampled_from(KINDS), st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_refused_or_read(kind: type[Message], data: bytes) -> None:
    try:
        message = decode(kind, data)
    except ProtocolError:
        return
    assert decode(kind, encode(message)) == message


def test_a_message_reads_back_with_unknown_fields() -> None:
    event = Event(stream="s", seq=1, at=1.5, kind="deployment", data={"n": 1, "ok": True, "x": 0.5, "t": "v"})
    raw = {**msgspec.json.decode(encode(event)), "unknown": [1]}
    assert decode(Event, msgspec.json.encode(raw)) == event


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'{"stream":"s","seq":0,"at":1,"kind":"x"}', MalformedError),
        (b'{"stream":"s","seq":1,"at":-1,"kind":"x"}', MalformedError),
        (b'{"stream":"s","seq":1,"at":1,"kind":"a/b"}', MalformedError),
        (b'{"stream":"s","seq":1,"at":1,"kind":"x","spec_version":"2.0"}', UnsupportedVersionError),
        (b'{"a":' * 20_000, MalformedError),
        (b" " * (MAX_CONTROL_BYTES + 1), MalformedError),
    ],
)
def test_a_bad_event_is_refused(data: bytes, error: type[ProtocolError]) -> None:
    with pytest.raises(error):
        decode(Event, data)


@given(st.binary(max_size=200))
def test_any_enrolment_file_is_refused_with_our_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_enrolment(data)


def needs(**fields: object) -> Manifest:
    return Manifest(
        spec_version="1.0", kind="training", model="m", version=1, profile="p", files=(),
        requires=Requirements(engine="onnxruntime", **fields),  # type: ignore[arg-type]
    )  # fmt: skip


PI = DeviceFacts(
    machine="aarch64",
    compatible=("raspberry-pi-4-64", "raspberrypi,4-model-b"),
    cpu_features=("asimd",),
    memory_mib=4096,
    engines={"onnxruntime": "1.32.0"},
)


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        ({"compatible": ("raspberry-pi-5",)}, "this board is"),
        ({"machine": "x86_64"}, "this one is aarch64"),
        ({"cpu_features": ("asimd", "asimddp")}, "lacks asimddp"),
        ({"engine_min": "1.40"}, "1.40 or newer"),
        ({"engine_below": "1.32"}, "below 1.32"),
        ({"memory_mib": 9000}, "9000 MiB"),
    ],
)
def test_each_reason_not_to_fit_is_named(need: dict[str, object], reason: str) -> None:
    assert reason in " ".join(fits(PI, needs(**need)))


def test_a_bundle_that_fits_has_no_reason() -> None:
    assert fits(PI, needs(compatible=("raspberry-pi-4-64",), machine="aarch64", engine_min="1.20")) == ()
    assert "litert" not in PI.engines
    assert (
        "installed: onnxruntime"
        in fits(PI, msgspec.structs.replace(needs(), requires=Requirements(engine="litert")))[0]
    )


def test_a_simulated_board_is_not_held_to_the_processor() -> None:
    simulated = msgspec.structs.replace(PI, machine="x86_64", cpu_features=(), simulated=True)
    need = needs(compatible=("raspberry-pi-4-64",), machine="aarch64", cpu_features=("asimd",))
    assert fits(simulated, need) == ()
    assert fits(msgspec.structs.replace(simulated, simulated=False), need)


def test_versions_compare_by_their_numbers() -> None:
    assert version_tuple("1.32.0+cpu") == (1, 32, 0)
    assert version_tuple("2.10rc1") > version_tuple("2.9")
    assert version_tuple("") == ()


def counted(field: bytes) -> bytes:
    return b'{"stream":"s","seq":1,"at":1,"window_s":1,"models":[{"model":"m",' + field + b"}]}"


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Want, b'{"metadata":["a/b"]}'),
        (Want, b'{"metadata":[""]}'),
        (
            Reported,
            b'{"at":1,"assignment_version":1,"models":[{"model":"m","state":"idle","since":1,"active_sha256":"x"}]}',
        ),
        (Telemetry, counted(b'"version":9223372036854775808')),
        (Telemetry, counted(b'"version":1,"requests":9007199254740991')),
        (Telemetry, counted(b'"version":1,"latency_p95_ms":1e308')),
        (UpdateReady, b'{"round_id":"r","length":1,"sha256":"%b","samples":1,"metrics":{"a":1e308}}' % (b"a" * 64)),
    ],
)
def test_what_the_server_could_not_store_or_add_up_is_refused(kind: type[Message], data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(kind, data)


@given(st.text(max_size=30) | st.just("9" * 5000) | st.just("1.\u00b2"))
def test_any_text_is_a_version(text: str) -> None:
    assert all(part >= 0 for part in version_tuple(text))
