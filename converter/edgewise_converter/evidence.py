"""What a bundle carries besides the model: golden answers, the baseline of drift, and what its numbers hold for."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from edgewise_profiles.schema import Profile
from edgewise_protocol.manifest import Golden, Numerics, Proof
from numpy.typing import NDArray

from edgewise_converter import golden
from edgewise_converter.engines.answering import answer
from edgewise_converter.engines.named import NamedModel, Tensors
from edgewise_converter.hardware import Host, is_instruction_set
from edgewise_converter.importing.judgement import golden_rule
from edgewise_converter.passes.artifact import Artifact
from edgewise_converter.requests import Requests


class Evidence(NamedTuple):
    """Golden answers as a file, and the rule by which they are compared."""

    golden: bytes
    rule: Golden


def golden_of_batch(
    model: NamedModel, inputs: Tensors, answers: Tensors, task: str, *, in_order: bool = False
) -> Evidence:
    """Golden answers of a model with a batch, chosen among requests (N, ...) and their answers.

    With `in_order` the first requests are golden: later answers depend on those before.
    """
    first = answers[model.outputs[0].name]
    chosen = np.arange(min(len(first), golden.SAMPLES)) if in_order else golden.choose(first)
    feeds = _take(inputs, chosen)
    # Asked again together, as the device asks: weights-only int8 answers by what else is in the batch.
    held = _take(answers, chosen) if in_order else model.infer(feeds)
    return _evidence(model, feeds, held, task, len(chosen))


def golden_of_request(model: NamedModel, feeds: Tensors, answers: Tensors, task: str) -> Evidence:
    """Golden answers of a model without a batch: one request, whole."""
    count = max((spec.shape[0] for spec in model.inputs if spec.shape), default=1)
    count = count if count > 0 else len(next(iter(feeds.values())))
    return _evidence(model, feeds, answers, task, max(1, count))


def golden_of(model: NamedModel, requests: Requests, task: str, *, in_order: bool = False) -> Evidence:
    """Golden answers among requests; `model` is freshly loaded."""
    if requests.batched:
        return golden_of_batch(model, requests.feeds, answer(model, requests), task, in_order=in_order)
    # The last request of a stateful model has a state that is not all zeros.
    feeds = requests.one(len(requests) - 1)
    return golden_of_request(model, feeds, model.infer(feeds), task)


def numerics_of(artifact: Artifact, profile: Profile, host: Host, engine_version: str) -> Numerics:
    """Operator set and IR version of a file; and this host as a proof, where it is of the profile's instruction set.

    The golden answers are run on this host before a bundle is written, so that the proof holds
    for every bundle that is; not where another file stands in for it.
    """
    opset = ir_version = 0
    if artifact.format == "onnx":
        from edgewise_converter.passes.onnx_facts import versions

        opset, ir_version = versions(artifact.data)
    proof = Proof(
        machine=host.machine,
        cpu=host.cpu[:200],
        cpu_features=tuple(f for f in host.cpu_features if f in {*profile.cpu.features, *profile.cpu.any_of}),
        engine_version=engine_version,
    )
    own = artifact.stand_in is None and is_instruction_set(profile, host)
    return Numerics(opset=opset, ir_version=ir_version, proofs=(proof,) if own else ())


def _evidence(model: NamedModel, inputs: Tensors, answers: Tensors, task: str, count: int) -> Evidence:
    return Evidence(golden.encode(inputs, answers), golden_rule(model, answers, task, count))


def _take(arrays: Tensors, chosen: NDArray[Any]) -> Tensors:
    return {name: array[chosen] for name, array in arrays.items()}
