"""What a target profile is: the schema of `boards/*.toml`, and its checks.

One file is one board, whole in itself: there is no inheritance, and unknown keys are
refused, so that a misspelt bound cannot silently bind nothing. Reading files is the
catalogue's work, comparing with devices the matching's.
"""

from __future__ import annotations

import hashlib
import tomllib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from edgewise_profiles.errors import NoTargetError, ProfileSchemaError
from edgewise_profiles.mcu import Mcu, Part, mcu_faults

MAX_PROFILE_BYTES: Final = 64 * 1024
_KIB_PER_MIB: Final = 1024
_DEFAULT_OPSET: Final = 20
_SLOTS: Final = 3
"""Active, previous and incoming bundle: what a device holds of one model during an update."""

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$(?!\n)", max_length=64)]
Text = Annotated[str, Meta(min_length=1, max_length=200)]
Feature = Annotated[str, Meta(pattern=r"^[a-z0-9_]+$(?!\n)", max_length=32)]
"""A CPU feature as the `flags` or `Features` line of Linux's /proc/cpuinfo spells it."""
Package = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9+.-]+$(?!\n)", max_length=64)]
"""Of Debian."""
Machine = Literal["x86_64", "aarch64", "armv7l", "riscv64", "armv7e-m", "armv8.1-m"]
"""As `platform.machine()` says it; microcontrollers, which say nothing, by their Arm architecture."""
EngineName = Literal["onnxruntime", "litert", "tflite-runtime", "iree", "c99"]
Format = Literal["onnx", "ort", "tflite", "vmfb", "c99"]
Precision = Literal["float32", "float16", "int8", "int8-dynamic", "int16x8", "int4"]
"""`int8` is full: weights and activations. `int8-dynamic` and `int4` narrow the weights alone."""
VersionText = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+){0,3}$(?!\n)")]

FORMAT_OF: Final[dict[EngineName, Format]] = {
    "onnxruntime": "onnx",
    "litert": "tflite",
    "tflite-runtime": "tflite",
    "iree": "vmfb",
    "c99": "c99",
}
"""What an engine reads by default; onnxruntime reads `ort` too, the same graph in another container."""
SUPPORTED: Final[frozenset[tuple[EngineName, Precision]]] = frozenset(
    {
        ("onnxruntime", "float32"),
        ("onnxruntime", "float16"),
        ("onnxruntime", "int8"),
        ("onnxruntime", "int8-dynamic"),
        ("onnxruntime", "int4"),
        ("litert", "float32"),
        ("litert", "float16"),
        ("litert", "int8"),
        ("litert", "int8-dynamic"),
        ("litert", "int16x8"),
        # tflite-runtime 2.14 runs int8-dynamic and int4 files without an error, and answers wrong.
        ("tflite-runtime", "float32"),
        ("tflite-runtime", "int8"),
        ("iree", "float32"),
        ("iree", "int8"),
        ("c99", "int8"),
    }
)


class Cpu(Part, frozen=True, kw_only=True):
    """The processor, in Linux's and LLVM's words."""

    model: Text
    features: Annotated[tuple[Feature, ...], Meta(max_length=64)]
    """All of these are there."""
    any_of: Annotated[tuple[Feature, ...], Meta(max_length=16)] = ()
    """At least one of these is there, if any is named."""
    cores: Annotated[int, Meta(ge=1, le=1024)]
    triple: Annotated[str, Meta(pattern=r"^[a-z0-9_.]+-[a-z0-9_]+-[a-z0-9_]+(-[a-z0-9_]+)?$(?!\n)", max_length=64)]


class Storage(Part, frozen=True, kw_only=True):
    """Where bundles are kept."""

    kind: Literal["sd-card", "emmc", "ssd", "disk", "flash"]
    min_mib: Annotated[int, Meta(ge=0, le=2**24)]
    """The smallest medium that the profile is meant for, MiB; 0 where a gateway keeps the bundles."""


class Os(Part, frozen=True, kw_only=True):
    """The operating system that the profile was written for."""

    name: Literal["linux", "none"]
    """`none` where the model is part of the firmware; a gateway's agent then stands for the board."""
    distribution: Text
    bits: Literal[32, 64]
    python: Annotated[str, Meta(pattern=r"^([0-9]+(\.[0-9]+){0,3})?$(?!\n)")]
    """Oldest Python of the agent; empty where there is none."""


class Engine(Part, frozen=True, kw_only=True):
    """An inference engine that the device may run, and the versions that are fit for it."""

    name: EngineName
    min: VersionText
    below: VersionText
    opset: Annotated[int, Meta(ge=18, le=23)] = _DEFAULT_OPSET
    """ONNX operator set to export with; without meaning for `litert`."""
    optional: bool = False
    """Whether devices get it only when they are asked to: its forms are made when they are named."""


class Target(Part, frozen=True, kw_only=True):
    """A form that a model may take on this device."""

    engine: EngineName
    precision: Precision

    @property
    def format(self) -> Format:
        """The file format that the engine reads."""
        return FORMAT_OF[self.engine]


class Numerics(Part, frozen=True, kw_only=True):
    """How the processor multiplies bytes."""

    int8_dot_product: bool
    """VNNI (x86) or dot-product (Arm) instructions: four products are added up in 32 bits."""

    @property
    def reduce_range(self) -> bool:
        """Whether int8 weights for onnxruntime keep to 7 bits.

        Without VNNI, x86 adds pairs of products in 16 bits, with saturation (VPMADDUBSW). Arm
        without dot product accumulates pairs too; there the narrower range is a precaution.
        """
        return not self.int8_dot_product


class Emulation(Part, frozen=True, kw_only=True):
    """How another machine stands in for the processor, to run golden inputs there: by qemu-user in a Debian system.

    It proves loading and numerics; it says nothing of latency.
    """

    qemu: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._,=-]*$(?!\n)", max_length=64)]
    """The processor's model as `qemu-<machine> -cpu` takes it."""
    midr: Annotated[str, Meta(pattern=r"^0x[0-9a-f]{8}$(?!\n)")] | None = None
    """Arm's Main ID Register, by which the engines' kernels are chosen; Arm alone has it, and must."""
    suite: Literal["bookworm", "trixie"] = "bookworm"
    packages: Annotated[tuple[Package, ...], Meta(max_length=32)] = ()
    """Of Debian, beside Python: what has no wheel for the machine."""


class Budget(Part, frozen=True, kw_only=True):
    """What one model may cost on this device."""

    model_size_kib: Annotated[int, Meta(ge=1, le=2**21)]
    """The model file, KiB."""
    latency_ms: Annotated[float, Meta(gt=0, le=60_000)]
    """Median of one sample on one thread, milliseconds; binds on the profile's own hardware only."""
    memory_mib: Annotated[int, Meta(ge=0, le=2**20)]
    """Peak resident memory of the process that tests the model, MiB; 0 on microcontrollers, see `Mcu`."""
    accuracy_drop: Annotated[float, Meta(ge=0, le=100)] = 1.0
    """Points of held-out accuracy that conversion may cost."""


class Profile(Part, frozen=True, kw_only=True):
    """A target: a board, or a kind of machine, that models are converted for."""

    id: Name
    title: Text
    compatible: Annotated[tuple[Text, ...], Meta(max_length=16)] = ()
    """Device-tree strings; the profile's id always counts as one more, see `all_compatible`."""
    machine: Machine
    cpu: Cpu
    memory_mib: Annotated[int, Meta(ge=0, le=2**24)]
    """Installed memory of the smallest variant, MiB. Linux reports somewhat less. 0 on microcontrollers, see `Mcu`."""
    storage: Storage
    os: Os
    wheel_tags: Annotated[tuple[Text, ...], Meta(max_length=16)]
    """Platform tags of Python wheels, preferred first; none on microcontrollers."""
    engines: Annotated[tuple[Engine, ...], Meta(min_length=1, max_length=4)]
    targets: Annotated[tuple[Target, ...], Meta(min_length=1, max_length=16)]
    """Allowed forms of a model, the default first."""
    numerics: Numerics
    budget: Budget
    emulation: Emulation | None = None
    """None where no emulator has what the processor has: bundles are then proven on the hardware alone."""
    mcu: Mcu | None = None
    """Of a board that runs firmware instead of an agent."""

    @property
    def all_compatible(self) -> tuple[str, ...]:
        """The strings by which a device may say that it is one of these: the id, then the device tree's."""
        return (self.id, *self.compatible)

    @property
    def sha256(self) -> str:
        """Digest of the profile's content, free of comments, key order and layout."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    def engine(self, name: EngineName) -> Engine:
        """The engine of that name; the schema holds that every target's engine is there."""
        return next(e for e in self.engines if e.name == name)

    @property
    def opset(self) -> int:
        """ONNX operator set to export with: that of the first engine that is fed by ONNX graphs."""
        return next((e.opset for e in self.engines if e.name in ("onnxruntime", "iree")), _DEFAULT_OPSET)

    def target(self, wanted: str | None = None) -> Target:
        """The form to convert to.

        Args:
            wanted: a precision (`int8`), a format and precision (`onnx-int8`), or None for the default.

        Raises:
            NoTargetError: the profile allows no such form.
        """
        if wanted is None:
            return self.targets[0]
        for target in self.targets:
            if wanted in (target.precision, f"{target.format}-{target.precision}"):
                return target
        allowed = ", ".join(f"{t.format}-{t.precision}" for t in self.targets)
        raise NoTargetError(f"{self.id} allows no {wanted[:40]!r}; it allows {allowed}")


def parse(data: bytes, profile_id: str) -> Profile:
    """Parse and check a board file.

    Args:
        data: TOML; at most 64 KiB. It holds no `id`: the file's name is the id.
        profile_id: the id to give it.

    Raises:
        ProfileSchemaError: what is wrong, with the key named.
    """
    if len(data) > MAX_PROFILE_BYTES:
        raise ProfileSchemaError(f"{profile_id}: {len(data)} bytes; at most {MAX_PROFILE_BYTES} are allowed")
    try:
        raw = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileSchemaError(f"{profile_id}: not TOML: {error}") from error
    if "id" in raw:
        raise ProfileSchemaError(f"{profile_id}: the id is the file's name; remove the key 'id'")
    try:
        profile = msgspec.convert({**raw, "id": profile_id}, Profile)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ProfileSchemaError(f"{profile_id}: {error}") from error
    faults = check(profile)
    if faults:
        raise ProfileSchemaError(f"{profile_id}: " + "; ".join(faults))
    return profile


def check(profile: Profile) -> tuple[str, ...]:
    """What contradicts itself in a profile; empty when nothing does."""
    faults: list[str] = []
    budget, cpu = profile.budget, profile.cpu
    if profile.mcu is not None:
        faults += mcu_faults(profile.mcu, profile.machine)
        shared = (profile.memory_mib, budget.memory_mib, profile.storage.min_mib, len(profile.wheel_tags))
        if any(shared) or profile.os.name != "none" or profile.os.python or profile.emulation is not None:
            faults.append("a board with mcu has no system: os.name none, memory_mib, storage and wheel_tags nothing")
        if any(target.engine != "c99" for target in profile.targets):
            faults.append("a board with mcu runs c99 alone")
    elif profile.os.name == "none" or not profile.os.python or not profile.wheel_tags:
        faults.append("a board without mcu has an os, a python, and wheel_tags")
    elif not budget.memory_mib or budget.memory_mib >= profile.memory_mib:
        faults.append(
            f"budget.memory_mib is {budget.memory_mib}, the device has {profile.memory_mib}: "
            "the budget must leave room for the system"
        )
    if profile.mcu is None and budget.model_size_kib > budget.memory_mib * _KIB_PER_MIB:
        faults.append(f"budget.model_size_kib is {budget.model_size_kib}, which budget.memory_mib does not hold")
    if profile.mcu is None and budget.model_size_kib * _SLOTS > profile.storage.min_mib * _KIB_PER_MIB:
        faults.append(f"storage.min_mib is {profile.storage.min_mib}, too little for {_SLOTS} models of the budget")
    names = [e.name for e in profile.engines]
    if len(set(names)) != len(names):
        faults.append("engines names one engine twice")
    for engine in profile.engines:
        if _numbers(engine.min) >= _numbers(engine.below):
            faults.append(f"engines.{engine.name}: min {engine.min} is not below {engine.below}")
    for target in profile.targets:
        if target.engine not in names:
            faults.append(f"targets names {target.engine}, which engines does not list")
        if (target.engine, target.precision) not in SUPPORTED:
            faults.append(f"targets: {target.engine} has no {target.precision}")
    if len(set(profile.targets)) != len(profile.targets):
        faults.append("targets names one form twice")
    if not cpu.triple.startswith(_TRIPLES[profile.machine]):
        faults.append(f"cpu.triple {cpu.triple} is not of machine {profile.machine}")
    if any(tag != "any" and not tag.endswith(f"_{profile.machine}") for tag in profile.wheel_tags):
        faults.append(f"wheel_tags holds one that is not for {profile.machine}")
    emulation = profile.emulation
    if emulation is not None:
        if profile.machine not in DEBIAN_ARCHITECTURES:
            faults.append(f"emulation is of machines with a Debian system, which {profile.machine} has none of")
        if (emulation.midr is not None) != (profile.machine in ("aarch64", "armv7l")):
            faults.append("emulation.midr must be there for aarch64 and armv7l, and for them alone")
    provided = set(cpu.features + cpu.any_of) & _DOT_PRODUCT.get(profile.machine, frozenset())
    if profile.numerics.int8_dot_product and not provided:
        faults.append("numerics.int8_dot_product needs a cpu feature that provides it")
    return tuple(faults)


DEBIAN_ARCHITECTURES: Final[dict[Machine, str]] = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "armhf",
    "riscv64": "riscv64",
}
_DOT_PRODUCT: Final[dict[Machine, frozenset[str]]] = {
    "x86_64": frozenset({"avx512_vnni", "avx_vnni"}),
    "aarch64": frozenset({"asimddp"}),
}
_TRIPLES: Final[dict[Machine, str]] = {
    "x86_64": "x86_64-",
    "aarch64": "aarch64-",
    "armv7l": "armv7",
    "riscv64": "riscv64-",
    "armv7e-m": "thumbv7em-",
    "armv8.1-m": "thumbv8.1m.main-",
}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
