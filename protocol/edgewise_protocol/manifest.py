"""The bundle's manifest: what a bundle is, what it needs, and how to tell that it works.

The manifest holds no timestamp and no measured latency, so that unchanged inputs give
a bundle of the same digest.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from edgewise_protocol.bounds import MAX_BUNDLE_BYTES, MAX_BUNDLE_FILES, MAX_MANIFEST_BYTES, MAX_NAME_CHARS
from edgewise_protocol.errors import MalformedError, UnsupportedVersionError

SPEC_VERSION: Final = "1.0"
MANIFEST_FILE: Final = "manifest.json"
AGENT_MODEL: Final = "edgewise-agent"
"""What agent bundles stand under in place of a model's name; no model may bear it."""

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$(?!\n)", max_length=MAX_NAME_CHARS)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Version = Annotated[int, Meta(ge=1, le=2**31 - 1)]
DType = Literal[
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64"
]
"""Open Inference Protocol data types that bundles use."""


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output as the *client* sees it: int8 files take and give FP32 here, the
    engine converts by the file's scale and zero point. `shape[0]` is the batch, -1 if free."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    dtype: DType
    shape: Annotated[tuple[int, ...], Meta(max_length=8)]


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    name: Name
    sha256: Sha256
    size: Annotated[int, Meta(ge=0, le=MAX_BUNDLE_BYTES)]


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """What the device must have; see `edgewise_protocol.facts.fits`."""

    engine: Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$(?!\n)", max_length=MAX_NAME_CHARS)] = ""
    """`onnxruntime`, `litert`, `tflite-runtime`, `iree` or `c99`; empty in an agent bundle alone."""
    engine_min: str = ""
    engine_below: str = ""
    compatible: tuple[str, ...] = ()
    """Any one of these must be among the device's `compatible` strings."""
    machine: str = ""
    """As `platform.machine()` says it: `x86_64`, `aarch64`, ..."""
    cpu_features: tuple[str, ...] = ()
    cpu_any_of: tuple[str, ...] = ()
    """At least one of these, if any is named: VNNI is `avx512_vnni` here and `avx_vnni` there."""
    memory_mib: Annotated[int, Meta(ge=0)] = 0


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds from the profile. The latency binds only on the profile's own hardware."""

    size_bytes: Annotated[int, Meta(ge=0)] = 0
    latency_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Median latency of one sample on one thread, milliseconds; 0 is no bound."""
    memory_mib: Annotated[int, Meta(ge=0)] = 0
    """Peak resident memory of the self-test's child process; 0 is no bound."""


class Tolerance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The tolerance of one output. With `outliers` it is judged alone; without, together with the others."""

    output: Annotated[str, Meta(min_length=1, max_length=200)]
    atol: Annotated[float, Meta(ge=0)]
    rtol: Annotated[float, Meta(ge=0)]
    top1: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Least share of samples with the same arg-max in this output; counts only with `outliers`."""
    outliers: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Share of this output's elements that may be outside; None: the bundle's, over all such outputs together."""
    rms: Annotated[float, Meta(ge=0)] = 0.0
    """Largest root mean square of this output's error; 0 is no bound."""


class Golden(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Golden inputs and outputs: a safetensors file with `input.<name>` and `output.<name>`.

    An output element is within the tolerance where it differs from the golden one by at most
    `atol + rtol * |golden|`. The self-test passes where the share of elements outside is at
    most `outliers`, and, with `top1` > 0, at least that share of samples has the same arg-max,
    and, with `rms` > 0, no output's error has a larger root mean square.
    """

    file: Name
    samples: Annotated[int, Meta(ge=1, le=4096)]
    atol: Annotated[float, Meta(ge=0)]
    rtol: Annotated[float, Meta(ge=0)]
    top1: Annotated[float, Meta(ge=0, le=1)] = 0.0
    outliers: Annotated[float, Meta(ge=0, le=1)] = 0.0
    per_output: Annotated[tuple[Tolerance, ...], Meta(max_length=64)] = ()
    """Where outputs differ in scale; an output that is not named has `atol`, `rtol` and `rms`."""
    rms: Annotated[float, Meta(ge=0)] = 0.0
    """Largest root mean square of an output's error; 0 is no bound. It refuses what tells samples no longer apart."""

    def tolerance(self, output: str) -> tuple[float, float]:
        """`atol` and `rtol` of an output."""
        own = self.own(output)
        return (self.atol, self.rtol) if own is None else (own.atol, own.rtol)

    def own(self, output: str) -> Tolerance | None:
        """The tolerance that names an output, if one does."""
        return next((t for t in self.per_output if t.output == output), None)


class Proof(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The golden inputs were run on this instruction set, and the answers were within the tolerance."""

    machine: Annotated[str, Meta(min_length=1, max_length=32)]
    """As `platform.machine()` says it there."""
    cpu: Annotated[str, Meta(max_length=200)] = ""
    """The processor, or the emulator's model of it."""
    cpu_features: Annotated[tuple[Annotated[str, Meta(max_length=32)], ...], Meta(max_length=256)] = ()
    """Those that the engine's kernels choose by."""
    engine_version: Annotated[str, Meta(max_length=MAX_NAME_CHARS)] = ""
    emulated: bool = False
    """Under an emulator: it proves loading and numerics, never latency."""


class Numerics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the bundle's numbers hold for: one int8 file may answer otherwise on another processor."""

    opset: Annotated[int, Meta(ge=0, le=1000)] = 0
    """Of ONNX files; 0 elsewhere."""
    ir_version: Annotated[int, Meta(ge=0, le=1000)] = 0
    proofs: Annotated[tuple[Proof, ...], Meta(max_length=16)] = ()
    """Where the golden answers were seen; the device's own self-test decides."""


class StatePair(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that a stateful model hands to its next call: feed the output back as the input."""

    input: Annotated[str, Meta(min_length=1, max_length=200)]
    output: Annotated[str, Meta(min_length=1, max_length=200)]


class TrainingSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The training-step graph of a bundle of kind `training`.

    Graph inputs: `x`, `y`, `lr` (0-d float32), `mu` (0-d float32, FedProx), then `p.<name>`
    parameters, `m.<name>` momenta, `b.<name>` buffers, `g.<name>` global parameters.
    Graph outputs: `loss`, `correct`, `new_p.<name>`, `new_m.<name>`, `new_b.<name>`.
    A round's weights and a client's update are safetensors files that hold `p.<name>` and
    `b.<name>`.
    """

    step_file: Name
    initial_file: Name
    """Safetensors with `p.*` and `b.*` to start from."""
    x: TensorSpec
    y: TensorSpec
    params: Annotated[tuple[TensorSpec, ...], Meta(max_length=2000)]
    buffers: Annotated[tuple[TensorSpec, ...], Meta(max_length=2000)] = ()
    momentum: bool = True


class WheelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One wheel of an agent bundle."""

    file: Name
    distribution: Name
    """Normalised as PEP 503 says."""
    version: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
    tags: Annotated[tuple[Annotated[str, Meta(max_length=200)], ...], Meta(min_length=1, max_length=64)]
    """Compatibility tags of PEP 425, any one of which must be the device's: `py3-none-any`, ..."""


class AgentSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The agent of a bundle of kind `agent`; see `edgewise_protocol.agent`."""

    version: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
    """PEP 440; what the device then reports as `agent_version`."""
    wheels: Annotated[tuple[WheelSpec, ...], Meta(min_length=1, max_length=MAX_BUNDLE_FILES)]
    requires_python: Annotated[str, Meta(max_length=200)] = ""
    """A version specifier of PEP 440."""
    launcher_min: Annotated[int, Meta(ge=1, le=1_000)] = 1
    """Oldest launcher that can start it."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    spec_version: str
    kind: Literal["inference", "training", "agent"]
    model: Name
    version: Version
    profile: Name
    """Profile id, or `any` for a training bundle."""
    requires: Requirements
    files: Annotated[tuple[FileEntry, ...], Meta(min_length=1, max_length=MAX_BUNDLE_FILES)]
    task: Literal["classification", "regression", "embedding", "other"] = "other"
    labels: Annotated[tuple[str, ...], Meta(max_length=10_000)] = ()
    inputs: Annotated[tuple[TensorSpec, ...], Meta(max_length=64)] = ()
    outputs: Annotated[tuple[TensorSpec, ...], Meta(max_length=64)] = ()
    format: Literal["onnx", "ort", "tflite", "vmfb", "c99"] = "onnx"
    precision: str = "float32"
    model_file: str = ""
    budget: Budget = msgspec.field(default_factory=Budget)
    golden: Golden | None = None
    numerics: Numerics | None = None
    state: Annotated[tuple[StatePair, ...], Meta(max_length=32)] = ()
    """Of a model with explicit state; the client carries it from call to call."""
    baseline_file: str = ""
    provenance_file: str = ""
    training: TrainingSpec | None = None
    agent: AgentSpec | None = None
    lineage: dict[str, str] = {}
    """`run`, `data_fingerprint`, `source_sha256`, `profile_sha256`, `converter`, `parent`, ..."""
    metrics: dict[str, float] = {}
    """Measured on held-out data: `accuracy`, `accuracy_float`, `agreement`, ..."""


_decoder = msgspec.json.Decoder(Manifest)


def check_major(spec_version: str, supported: str = SPEC_VERSION) -> None:
    """Refuse an unknown major version; an unknown minor one is accepted."""
    if spec_version.split(".")[0] != supported.split(".")[0]:
        raise UnsupportedVersionError(
            f"the document is of version {spec_version[:20]!r}; "
            f"this software knows {supported.split('.')[0]}.x: update it"
        )


def decode_manifest(data: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises:
        MalformedError: not JSON, a field is missing or wrong, or a named file is not listed.
        UnsupportedVersionError: an unknown major version.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise MalformedError(f"the manifest has {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are allowed")
    try:
        manifest = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedError(f"the manifest is not valid: {error}") from error
    check_major(manifest.spec_version)
    listed = [entry.name for entry in manifest.files]
    if len(set(listed)) != len(listed) or MANIFEST_FILE in listed:
        raise MalformedError("the manifest lists a file twice, or itself")
    named = [manifest.model_file, manifest.baseline_file, manifest.provenance_file]
    if manifest.golden:
        named.append(manifest.golden.file)
    if manifest.training:
        named += [manifest.training.step_file, manifest.training.initial_file]
    if manifest.agent:
        named += [wheel.file for wheel in manifest.agent.wheels]
    missing = [name for name in named if name and name not in listed]
    if missing:
        raise MalformedError(f"the manifest names {missing[0]!r}, which is not among its files")
    if manifest.kind == "inference" and not (
        manifest.model_file and manifest.inputs and manifest.outputs and manifest.golden
    ):
        raise MalformedError("an inference bundle needs model_file, inputs, outputs and golden")
    if manifest.kind == "training" and manifest.training is None:
        raise MalformedError("a training bundle needs a training section")
    if manifest.kind == "agent" and manifest.agent is None:
        raise MalformedError("an agent bundle needs an agent section")
    if (manifest.kind == "agent") != (manifest.model == AGENT_MODEL):
        raise MalformedError(f"agent bundles, and they alone, bear the name {AGENT_MODEL!r}")
    if manifest.kind != "agent" and not manifest.requires.engine:
        raise MalformedError(f"a bundle of kind {manifest.kind!r} must name the engine that it needs")
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON (sorted keys), so that equal manifests have equal bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1) + b"\n"
