"""The danger: a request that is taken for another, or that crashes or exhausts the decoder."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from typing import Any

import numpy as np
import pytest
from edgewise_agent.engines.dtypes import NUMPY
from edgewise_agent.serving import compression, routes
from edgewise_agent.serving.codec import decode_request, encode_response
from edgewise_agent.serving.errors import EncodingError, RequestError, TooLargeError
from edgewise_agent.serving.latency import LatencyHistogram
from edgewise_protocol.manifest import FileEntry, Golden, Manifest, Requirements, TensorSpec
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

DTYPES = sorted(NUMPY)


def manifest_of(inputs: list[TensorSpec], outputs: list[TensorSpec] | None = None) -> Manifest:
    return Manifest(
        spec_version="1.0",
        kind="inference",
        model="m",
        version=4,
        profile="p",
        requires=Requirements(engine="onnxruntime"),
        files=(FileEntry(name="model.onnx", sha256="0" * 64, size=1),),
        inputs=tuple(inputs),
        outputs=tuple(outputs or inputs),
        model_file="model.onnx",
        golden=Golden(file="g", samples=1, atol=0, rtol=0),
    )


X = TensorSpec(name="x", dtype="FP32", shape=(-1, 3))
ONE = manifest_of([X])


def body(**tensor: Any) -> bytes:
    given_tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3], **tensor}
    return json.dumps({"inputs": [{k: v for k, v in given_tensor.items() if v is not None}]}).encode()


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    return dtype, draw(hnp.arrays(NUMPY[dtype], shape))


@given(st.lists(tensors(), min_size=1, max_size=3), st.lists(st.booleans(), min_size=3, max_size=3), st.booleans())
def test_what_is_encoded_is_decoded_bit_for_bit(
    drawn: list[tuple[str, np.ndarray]], binary: list[bool], nested: bool
) -> None:
    """Both directions at once: a response's tensors, read back as a request's."""
    specs: list[Any] = [
        TensorSpec(name=f"t{i}", dtype=dtype, shape=array.shape)  # type: ignore[arg-type]
        for i, (dtype, array) in enumerate(drawn)
    ]
    manifest = manifest_of(specs)
    arrays = {f"t{i}": array for i, (_, array) in enumerate(drawn)}
    ask = {
        "id": "7",
        "inputs": [
            {"name": s.name, "datatype": s.dtype, "shape": list(s.shape), "parameters": {"binary_data_size": a.nbytes}}
            for s, a in zip(specs, arrays.values(), strict=True)
        ],
        "outputs": [{"name": s.name, "parameters": {"binary_data": b}} for s, b in zip(specs, binary, strict=False)],
        "parameters": {"camera": "north"},
    }
    head = json.dumps(ask).encode()
    request = decode_request(head + b"".join(a.tobytes() for a in arrays.values()), len(head), manifest)
    for name, array in arrays.items():
        assert request.inputs[name].tobytes() == array.tobytes()
    encoded = encode_response(request, arrays, manifest)
    split = len(encoded.body) if encoded.header_length is None else encoded.header_length
    said = json.loads(encoded.body[:split])
    assert (said["id"], said["model_name"], said["model_version"], said["parameters"]) == (
        "7",
        "m",
        "4",
        {"camera": "north"},
    )
    if nested:
        for tensor in said["outputs"]:
            if "data" in tensor:
                tensor["data"] = np.array(tensor["data"], object).reshape(tensor["shape"]).tolist()
    again = json.dumps({"inputs": said["outputs"]}).encode()
    back = decode_request(again + encoded.body[split:], len(again), manifest)
    for i, (name, array) in enumerate(arrays.items()):
        found = back.inputs[name]
        assert found.dtype == array.dtype
        if binary[i] or array.dtype.kind != "f":
            assert found.tobytes() == array.tobytes()
        else:
            np.testing.assert_array_equal(found, array)
            assert (np.signbit(found) == np.signbit(array))[~np.isnan(array)].all()


@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(-5, 400)))
@example(b"{}", None)
@example(b'{"inputs": [{}]}', None)
@example(b'{"inputs": null, "x": NaN}', None)
@example(b'{"inputs": [1], "x": NaN}', None)
@example(b'{"inputs": [{"data": "NaN"}], "x": NaN}', None)
@example(b"[" * 5000, None)
@example(b"NaN" + b"[" * 100_000, None)
@example(b"\xff" * 12, 0)
@example(b"\xff" * 13, 0)
@example(b"", 0)
def test_any_bytes_are_decoded_or_refused(data: bytes, header_length: int | None) -> None:
    try:
        request = decode_request(data, header_length, ONE)
    except RequestError:
        return
    assert request.inputs["x"].shape[1] == 3


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.just("x") | _JSON,
            "datatype": st.just("FP32") | _JSON,
            "shape": st.just([1, 3]) | _JSON,
            "data": st.just([1, 2, 3]) | _JSON,
            "parameters": st.just({"binary_data_size": 12}) | _JSON,
        },
    ),
    st.binary(max_size=13),
)
def test_any_json_is_decoded_or_refused(tensor: dict[str, Any], tail: bytes) -> None:
    head = json.dumps({"inputs": [tensor]}).encode()
    try:
        request = decode_request(head + tail, len(head), ONE)
    except RequestError:
        return
    assert request.inputs["x"].shape == tuple(tensor["shape"])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (body(shape=[1, 4]), r"has the shape \[-1, 3\]; got \[1, 4\]"),
        (body(shape=[2, 3]), "that is 6 elements; got 3"),
        (body(datatype="INT32"), "'x' is FP32; got INT32"),
        (body(name="y"), "no input 'y'; it takes 'x'"),
        (body(data=[1, "2", 3]), "does not hold FP32 data"),
        (body(data=[1, None, 3]), "does not hold FP32 data"),
        (body(data=[1, True, 3]), "does not hold FP32 data"),
        (body(data=[[1, 2], [3]]), "not nested as its shape"),
        (body(data=[[1, 2, 3], [1, 2, 3]]), "not nested as its shape"),
        (body(data=[1e39, 0, 0]), "outside of FP32"),
        (body(data=None), "either data or binary_data_size"),
        (body(parameters={"binary_data_size": 12}), "either data or binary_data_size"),
        (body(data=None, parameters={"binary_data_size": 12}), "names 12 bytes of binary data; 0 are left"),
        (body(data=None, parameters={"binary_data_size": -1}), "must be a whole number"),
        (body(data=None, parameters={"binary_data_size": True}), "must be a whole number"),
        (body(shape=[-1, 3]), "not an inference request"),
        (body(shape=[1] * 9), "not an inference request"),
        (b'{"inputs": []}', "input 'x' is missing"),
        (b"", "not an inference request"),
    ],
)
def test_refusals_say_why(data: bytes, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        decode_request(data, None, ONE)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("INT8", 128),
        ("INT8", -129),
        ("UINT8", -1),
        ("UINT64", -1),
        ("INT64", 2**63),
        ("UINT64", 2**64),
        ("INT32", 1.5),
        ("BOOL", 1),
    ],
)
def test_no_number_wraps_around(dtype: Any, value: Any) -> None:
    manifest = manifest_of([TensorSpec(name="x", dtype=dtype, shape=(1,))])
    data = json.dumps({"inputs": [{"name": "x", "datatype": dtype, "shape": [1], "data": [value]}]}).encode()
    with pytest.raises(RequestError):
        decode_request(data, None, manifest)


def test_leftover_binary_data_and_duplicates_are_refused() -> None:
    head = body(data=None, parameters={"binary_data_size": 12})
    with pytest.raises(RequestError, match="1 bytes after the JSON"):
        decode_request(head + b"\0" * 13, len(head), ONE)
    with pytest.raises(RequestError, match="has 5 bytes"):
        decode_request(b"{    ", 9, ONE)
    twice = json.loads(body())
    twice["inputs"] *= 2
    with pytest.raises(RequestError, match="given twice"):
        decode_request(json.dumps(twice).encode(), None, ONE)


def test_the_raw_binary_request_is_the_only_input() -> None:
    x = np.arange(6, dtype=np.float32)
    request = decode_request(x.tobytes(), 0, ONE)
    assert request.inputs["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert request.wanted[0].binary
    with pytest.raises(RequestError, match="not a tensor of FP32"):
        decode_request(b"\0" * 13, 0, ONE)


def test_unaligned_binary_data_are_readable_as_arrays() -> None:
    x = np.array([1.5, -2, 3], np.float32)
    for pad in range(4):
        head = body(data=None, parameters={"binary_data_size": 12, "pad": "p" * pad})
        found = decode_request(head + x.tobytes(), len(head), ONE).inputs["x"]
        assert found.flags.aligned
        assert found.tolist() == [[1.5, -2, 3]]


@given(st.binary(max_size=2000), st.sampled_from(["gzip", "deflate", "identity", "", "GZIP", "x-gzip"]))
def test_codings_are_undone(data: bytes, coding: str) -> None:
    sent = data
    if "gzip" in coding.lower():
        sent = gzip.compress(data)
    elif coding == "deflate":
        sent = zlib.compress(data)
    assert compression.decompress(sent, coding, 2000) == data


def test_bare_deflate_data_are_taken_too() -> None:
    engine = zlib.compressobj(wbits=-15)
    assert compression.decompress(engine.compress(b"abc" * 99) + engine.flush(), "deflate", 1000) == b"abc" * 99


@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate"]))
def test_any_compressed_bytes_are_undone_or_refused(data: bytes, coding: str) -> None:
    try:
        assert len(compression.decompress(data, coding, 50)) <= 50
    except (RequestError, TooLargeError):
        return


def test_a_compression_bomb_is_stopped_at_the_limit() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    with pytest.raises(TooLargeError, match="more than 1000 bytes"):
        compression.decompress(bomb, "gzip", 1000)


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "zstd"])
def test_unknown_codings_are_refused(coding: str) -> None:
    with pytest.raises(EncodingError):
        compression.decompress(b"", coding, 10)


def test_truncated_and_trailing_data_are_refused() -> None:
    whole = gzip.compress(b"hello" * 100)
    for data in (whole[:-4], whole + b"x", whole + whole):
        with pytest.raises(RequestError):
            compression.decompress(data, "gzip", 10_000)


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0", None),
        ("gzip;q=0.5, deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("br, *", None),
        ("gzip;q=x", None),
    ],
)
def test_the_response_is_coded_as_asked(accepted: str, chosen: str | None) -> None:
    assert compression.choose(accepted) == chosen


@pytest.mark.parametrize(
    ("target", "route"),
    [
        ("/v2", ("server", "", None)),
        ("/v2/health/live?x=1", ("live", "", None)),
        ("/v2/models/a", ("model", "a", None)),
        ("/v2/models/a%20b/versions/3/infer", ("infer", "a b", 3)),
        ("/v2/models/versions/versions/3/ready", ("model-ready", "versions", 3)),
        ("/v2/models/a/versions/3x", None),
        ("/v2/models//infer", None),
        ("/v2/models/a/generate", None),
        ("/", None),
        ("*", None),
        ("", None),
    ],
)
def test_routes(target: str, route: Any) -> None:
    found = routes.parse(target)
    assert found == (None if route is None else routes.Route(*route))


@given(st.text(max_size=60))
def test_any_target_is_routed_or_not(target: str) -> None:
    found = routes.parse(target)
    assert found is None or found.kind in routes.METHODS


@given(st.lists(st.floats(0.0011, 100_000), min_size=1, max_size=200), st.floats(0.01, 1))
def test_percentiles_are_right_to_within_a_bucket(values: list[float], share: float) -> None:
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]
    found = histogram.percentile(share)
    assert exact / 1.16 <= found <= min(max(values), exact * 1.16)
    assert histogram.maximum_ms == max(values)
    assert histogram.cumulative()[-1][1] == sum(v <= 100_000 for v in values)


def test_a_percentile_of_nothing_is_zero() -> None:
    assert LatencyHistogram().percentile(0.95) == 0.0
