"""Proves bundles: golden inputs on the target's instruction set, native where the host has it, else emulated.

Emulation proves loading and numerics, never latency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from edgewise_profiles.schema import Profile
from edgewise_protocol.bounds import MAX_BUNDLE_BYTES
from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.manifest import Manifest, Proof

from edgewise_converter import golden
from edgewise_converter.errors import (
    EngineError,
    ModelFileError,
    NoEmulationError,
    NotPreparedError,
    ProofError,
    ProofMissingError,
    ProofToolsError,
    WriteError,
)
from edgewise_converter.hardware import Host, is_instruction_set, read_host
from edgewise_converter.proof import c99_board, running, sysroot
from edgewise_converter.proof.result import HOST, Mode, ProofResult, Verdict, hold, judge
from edgewise_converter.proof.runner import DISTRIBUTIONS
from edgewise_converter.proof.sysroot import Progress

Place = Literal["native", "emulated"]
_STANDS_IN: Final = {"tflite-runtime": "litert"}
"""Reads the same files, where the engine itself has no wheel for the host."""
_MACHINE_CODE: Final = frozenset({"iree"})
"""Engines whose model files are machine code, which the engine jumps into."""
_DOT_PRODUCT: Final = frozenset({"avx512_vnni", "avx_vnni", "asimddp"})


class Golden(msgspec.Struct, frozen=True):
    """A bundle's model and golden tensors, read and checked."""

    manifest: Manifest
    model: bytes
    inputs: dict[str, Any]
    expected: dict[str, Any]


def read(bundle: Path) -> Golden:
    """Read a bundle of kind `inference`.

    Raises:
        WriteError: the file cannot be read.
        ModelFileError: it holds no model.
        ProtocolError: it is damaged.
    """
    try:
        with bundle.open("rb") as source:
            reader = BundleReader(source)
            manifest = reader.verify()
            if sum(entry.size for entry in manifest.files) > MAX_BUNDLE_BYTES:
                raise ModelFileError(f"{bundle.name} holds more than {MAX_BUNDLE_BYTES} bytes")
            return gather(manifest, {entry.name: reader.read(entry.name) for entry in manifest.files}, bundle.name)
    except OSError as error:
        raise WriteError(f"{bundle} cannot be read: {error.strerror}") from error


def gather(manifest: Manifest, files: Mapping[str, bytes], name: str) -> Golden:
    """The same of a bundle in memory; raises `ModelFileError`."""
    if manifest.kind != "inference" or manifest.golden is None:
        raise ModelFileError(f"{name} is a bundle of kind {manifest.kind!r}: it has no golden inputs to run")
    try:
        inputs, expected = golden.decode(files[manifest.golden.file])
    except Exception as error:
        raise ModelFileError(f"{name}: {manifest.golden.file} cannot be read: {error}") from error
    wanted = {spec.name for spec in manifest.inputs}, {spec.name for spec in manifest.outputs}
    if not (wanted[0] <= set(inputs) and wanted[1] <= set(expected)):
        raise ModelFileError(f"{name}: {manifest.golden.file} does not hold the manifest's inputs and outputs")
    expected = {spec.name: expected[spec.name] for spec in manifest.outputs}
    return Golden(manifest, files[manifest.model_file], inputs, expected)


def prove(
    bundle: Path,
    profile: Profile,
    *,
    place: Place | None = None,
    home: Path | None = None,
    machine_code: bool = False,
) -> ProofResult:
    """Run a bundle's golden inputs on a profile's instruction set.

    Args:
        bundle: `.ewb`.
        profile: whose.
        place: `native` or `emulated`; by default native where the host has the instruction set.
        home: the folder of sysroots.
        machine_code: whether the bundle's origin is trusted, so that machine code in it may run natively: it runs
            as this user, and may do whatever this user may. Emulated it is shut in, and asks for no trust.

    Returns:
        what was found; an engine that refuses the model has failed, too.

    Raises:
        NotPreparedError, NoEmulationError, ProofToolsError: it cannot be tried here.
        ProofMissingError: it holds machine code, and `machine_code` is not set.
        WriteError, ModelFileError, ProtocolError: see `read`.
    """
    return prove_on(read(bundle), profile, place=place, home=home, machine_code=machine_code)


def prove_on(
    what: Golden,
    profile: Profile,
    *,
    place: Place | None = None,
    home: Path | None = None,
    host: Host | None = None,
    machine_code: bool = False,
) -> ProofResult:
    """See `prove`."""
    here = host or read_host()
    if place is None:
        place = places(what.manifest, profile, here)[0]
    if place == "native":
        return on_host(what, profile=profile.id, host=here, machine_code=machine_code)
    if what.manifest.format == "c99":
        board = Proof(machine=profile.machine, cpu=profile.mcu.core if profile.mcu else "", emulated=True)
        return _run(what, profile.id, board, lambda: c99_board.answer(what, profile))
    if what.manifest.requires.engine not in DISTRIBUTIONS:
        raise NoEmulationError(f"the engine {what.manifest.requires.engine} is not run in sysroots")
    if what.manifest.requires.engine not in {engine.name for engine in profile.engines}:
        raise NoEmulationError(f"{profile.id} has no engine {what.manifest.requires.engine}")
    there = sysroot.need(profile, home)
    model = there.recipe.cpu
    assumed = Proof(machine=profile.machine, cpu=model, emulated=True)
    return _run(what, profile.id, assumed, lambda: running.run_emulated(what.manifest, what.model, what.inputs, there))


def on_host(what: Golden, *, profile: str = HOST, host: Host | None = None, machine_code: bool = False) -> ProofResult:
    """Run golden inputs on this machine, whatever profile the bundle is for.

    Args:
        what: the bundle.
        profile: what is stood for.
        host: this machine.
        machine_code: see `prove`.

    Raises:
        NoEmulationError: what the bundle holds is not run here: compiled for another machine, or no engine for it.
        ProofMissingError: it holds machine code, and `machine_code` is not set.
    """
    here = host or read_host()
    manifest = what.manifest
    engine = host_engine(manifest.requires.engine)
    if manifest.format == "vmfb" and manifest.requires.machine not in ("", here.machine):
        raise NoEmulationError(f"the model is compiled for {manifest.requires.machine}; this machine is {here.machine}")
    # By the engine that would run it: the format is what the bundle says of itself.
    if engine in _MACHINE_CODE and not machine_code:
        raise ProofMissingError(
            "the model is machine code, which would run as you, with all that you may do here; if you trust whoever "
            "made the bundle, add --run-machine-code"
        )
    assumed = Proof(machine=here.machine, cpu=here.cpu[:200])
    return _run(what, profile, assumed, lambda: running.run_native(manifest, what.model, what.inputs, engine))


def prove_contents(
    manifest: Manifest,
    files: Mapping[str, bytes],
    profile: Profile,
    *,
    mode: Mode = "auto",
    home: Path | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Prove a bundle before it is written, everywhere where this machine can.

    Its machine code runs here natively, as this user: it is for a bundle that was compiled here.

    Args:
        manifest: as it will be, without proofs.
        files: of the bundle.
        profile: what it is for.
        mode: `auto` refuses what failed, `always` also what cannot be proven here; `never` runs nothing.
        home: the folder of sysroots.
        progress: called with what is being done, and the share that is behind.

    Returns:
        what was found; `proofs` is for the manifest, `why_not` for the user.

    Raises:
        ProofMissingError: the mode refuses it.
        ModelFileError: it has no golden inputs.
    """
    if mode == "never":
        return Verdict(why_not="it was asked not to be")
    tell = progress or (lambda _text, _fraction: None)
    what, host = gather(manifest, files, manifest.model), read_host()
    results, reasons = [], []
    wanted = places(manifest, profile, host)
    for done, place in enumerate(wanted):
        tell(f"proving on {_in_words(place, profile, host)}", done / len(wanted))
        try:
            results.append(prove_on(what, profile, place=place, home=home, host=host, machine_code=True))
        except (NotPreparedError, NoEmulationError, ProofToolsError) as error:
            reasons.append(str(error))
    verdict = Verdict(results=tuple(results), why_not="; ".join(reasons))
    hold(verdict, mode, f"{manifest.model} {manifest.version} for {profile.id}")
    return verdict


def places(manifest: Manifest, profile: Profile, host: Host) -> tuple[Place, ...]:
    """Where a bundle is to be run to be proven for a profile. Pure.

    A host with more than the profile promises stands for it, but not with int8: dot-product
    instructions, which the profile's processors lack, add the products up in another way.
    """
    if not is_instruction_set(profile, host):
        return ("emulated",)
    more = _DOT_PRODUCT & set(host.cpu_features) and not profile.numerics.int8_dot_product
    return ("native", "emulated") if more and manifest.precision.startswith("int") else ("native",)


def host_engine(engine: str) -> str:
    """The engine that runs a bundle's model on this machine; raises `NoEmulationError` where none does."""
    for name in (engine, _STANDS_IN.get(engine, "")):
        try:
            version(DISTRIBUTIONS[name])
        except (KeyError, PackageNotFoundError):
            continue
        return name
    raise NoEmulationError(f"the engine {engine} is not installed on this machine")


def _run(what: Golden, profile: str, assumed: Proof, run: Callable[[], running.Answer]) -> ProofResult:
    """Run, and judge; an engine that fails, or dies, has not proven anything."""
    rule = what.manifest.golden
    if rule is None:
        raise ModelFileError("the bundle has no golden inputs")
    try:
        answer = run()
    except (EngineError, ProofError) as error:
        if isinstance(error, NotPreparedError | NoEmulationError | ProofToolsError):
            raise
        return ProofResult(profile=profile, proof=assumed, passed=False, reason=str(error), samples=rule.samples)
    proof = msgspec.structs.replace(
        assumed,
        machine=answer.told.machine,
        cpu_features=answer.told.features,
        engine_version=answer.told.version,
    )
    return judge(profile, proof, rule, what.expected, answer.outputs, seconds=answer.seconds, log=answer.log)


def _in_words(place: Place, profile: Profile, host: Host) -> str:
    if place == "native":
        return host.cpu or host.machine
    return f"an emulated {profile.emulation.qemu}" if profile.emulation else profile.cpu.model
