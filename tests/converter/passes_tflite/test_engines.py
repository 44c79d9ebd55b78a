"""Danger: state leaks from one judgement into the next, or a file is taken for what it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgewise_converter.engines.named_tflite import NamedTflite
from edgewise_converter.errors import ModelFileError
from edgewise_converter.tflite_file.compat import check_tflite_runtime
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.tflite_runtime_versions import VERSIONS
from edgewise_converter.tflite_file.unfolding import dense, unfold
from edgewise_converter.tflite_file.writing import write


def test_a_stateful_file_begins_anew_with_every_stream(files: Any) -> None:
    model = NamedTflite(files.counter())
    assert model.stateful
    steps = np.array([[1, 10], [2, 20], [3, 30]], np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(model.infer({"step": steps})["sum"], np.cumsum(steps, axis=0))
    model.call({"step": steps[:1]})
    np.testing.assert_array_equal(model.call({"step": steps[:1]})["sum"], [[8, 80]])
    model.reset()
    np.testing.assert_array_equal(model.call({"step": steps[:1]})["sum"], [[1, 10]])


def test_a_free_dimension_besides_the_batch_is_refused_by_name(files: Any) -> None:
    net = files.Graph()
    x = net.input("sound", (1, 1, 4))
    net.graph.tensors[x].shapeSignature = [-1, -1, 4]
    with pytest.raises(ModelFileError, match=r"'sound' has the shape \[-1, -1, 4\].*fixed shape"):
        NamedTflite(net.finish(net.op("RELU", [x], (1, 1, 4))))


def test_several_signatures_are_refused_by_name(files: Any, small: bytes) -> None:
    model = read(files.apply("tflite_compact", small))
    second = files.schema.SignatureDefT(
        inputs=model.signatureDefs[0].inputs, outputs=model.signatureDefs[0].outputs, signatureKey=b"other"
    )
    model.signatureDefs.append(second)
    with pytest.raises(ModelFileError, match=r"2 signatures .other, serving_default."):
        NamedTflite(write(model))


def sparse(files: Any, values: Any) -> bytes:
    """(1, 4) times a sparse (3, 4) constant, stored by rows as CSR."""
    net = files.Graph()
    x = net.input("x", (1, 4))
    weights = net.constant(values[values != 0].astype(np.float32), "sparse")
    schema, tensor = files.schema, net.graph.tensors[weights]
    tensor.shape = list(values.shape)
    segments = np.concatenate([[0], np.cumsum((values != 0).sum(1))]).tolist()
    rows = schema.DimensionMetadataT(format=0, denseSize=values.shape[0])
    columns = schema.DimensionMetadataT(format=1)
    columns.arraySegmentsType = columns.arrayIndicesType = schema.SparseIndexVector.Int32Vector
    columns.arraySegments = schema.Int32VectorT(values=segments)
    columns.arrayIndices = schema.Int32VectorT(values=np.nonzero(values)[1].tolist())
    tensor.sparsity = schema.SparsityParametersT(traversalOrder=[0, 1], blockMap=[], dimMetadata=[rows, columns])
    plain = net.op("DENSIFY", [weights], values.shape, label="dense")
    options = schema.FullyConnectedOptionsT(fusedActivationFunction=0)
    y = net.op("FULLY_CONNECTED", [x, plain, net.constant(np.zeros(3, np.float32))], (1, 3), options=options, label="y")
    return net.finish(y)


def test_a_sparse_constant_is_unfolded_as_the_engine_does(files: Any) -> None:
    values = np.array([[0, 2, 0, 3], [0, 0, 0, 0], [5, 0, 0, -1]], np.float32)
    data = sparse(files, values)
    model = read(data)
    (found,) = (t for t in model.subgraphs[0].tensors if t.sparsity is not None)
    np.testing.assert_array_equal(dense(model, found).reshape(3, 4), values)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    before = NamedTflite(data).infer({"x": x})["y"]
    np.testing.assert_allclose(before, x @ values.T, rtol=1e-6)
    assert unfold(model) == 1
    np.testing.assert_array_equal(NamedTflite(write(model)).infer({"x": x})["y"], before)


@pytest.mark.parametrize("segments", [[0, 2, 2, 9], [0, 2], [3, 2, 2, 4], [-1, 2, 2, 4]])
def test_a_forged_sparse_constant_is_refused(files: Any, segments: list[int]) -> None:
    model = read(sparse(files, np.array([[0, 2, 0, 3], [0, 0, 0, 0], [5, 0, 0, -1]], np.float32)))
    (found,) = (t for t in model.subgraphs[0].tensors if t.sparsity is not None)
    found.sparsity.dimMetadata[1].arraySegments.values = segments
    with pytest.raises(ModelFileError, match="sparse constant"):
        unfold(model)


@pytest.mark.parametrize(
    "name", ["tflite_compact", "tflite_float32", "tflite_float16", "tflite_int8", "tflite_int16x8"]
)
def test_what_the_passes_make_is_fit_for_tflite_runtime(files: Any, small: bytes, name: str) -> None:
    check_tflite_runtime(files.apply(name, small), "m")


def test_dynamic_range_never_reaches_tflite_runtime(files: Any, small: bytes) -> None:
    data = files.apply("tflite_int8_dynamic", small)
    with pytest.raises(ModelFileError, match=r"CONV_2D \(operator 0, .* has int8 weights behind float.*tflite_int8"):
        check_tflite_runtime(data, "m.tflite")


def test_newer_and_unknown_operators_are_named_with_their_place(files: Any) -> None:
    for name, version, words in (
        (
            "RELU",
            VERSIONS["RELU"] + 1,
            rf"RELU \(operator 0, 'odd'\) is of version {VERSIONS['RELU'] + 1}, it reads",
        ),
        ("STABLEHLO_ADD", 1, r"STABLEHLO_ADD \(operator 0, 'odd'\) is not known to it"),
    ):
        net = files.Graph()
        x = net.input("x", (1, 4))
        data = net.finish(net.op(name, [x], (1, 4), version=version, label="odd"))
        with pytest.raises(ModelFileError, match=words):
            check_tflite_runtime(data, "m")


def test_int4_weights_never_reach_tflite_runtime(files: Any) -> None:
    net = files.Graph()
    x = net.input("x", (1, 4))
    weights = net.tensor("w", (2, 4), 17, quantization=files.schema.QuantizationParametersT(scale=[0.1], zeroPoint=[0]))
    net.graph.tensors[weights].buffer = len(net.model.buffers)
    net.model.buffers.append(files.schema.BufferT(data=np.full(4, 0x21, np.uint8)))
    options = files.schema.FullyConnectedOptionsT(fusedActivationFunction=0)
    y = net.op("FULLY_CONNECTED", [x, weights, net.constant(np.zeros(2, np.float32))], (1, 2), options=options)
    with pytest.raises(ModelFileError, match="works on int4"):
        check_tflite_runtime(net.finish(y), "m")
