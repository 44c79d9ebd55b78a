"""ONNX to a module of native code, compiled ahead of time by IREE for one processor.

The device runs it with IREE's runtime alone. Where the host is of another architecture the same
graph is compiled for the host too, to be judged on: what both must agree on is proven on the target.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from edgewise_profiles.schema import Machine

from edgewise_converter.engines.named import FREE
from edgewise_converter.engines.named_iree import ENTRY
from edgewise_converter.engines.named_onnx import NamedOnnx
from edgewise_converter.errors import PassError
from edgewise_converter.hardware import read_host
from edgewise_converter.libraries import need
from edgewise_converter.passes.artifact import Artifact, Materials, Signature
from edgewise_converter.passes.compiled_catalogue import IreeCompileConfig
from edgewise_converter.passes.iree_target import TRIPLES, features_of, flags_of

MAGIC: Final = b"PK\x03\x04"
"""A module is a zip archive, stored, so that its code can be mapped; it begins with `module.fb`."""
_SECONDS: Final = 600
_MAX_MEMORY: Final = 16 << 30
_OPERATOR: Final = re.compile(r'torch\.operator[^"]*"onnx\.([A-Za-z0-9_]+)"|onnx\.([A-Z][A-Za-z0-9_]+)')
_COMMON: Final = (
    "--iree-hal-target-backends=llvm-cpu",
    "--iree-llvmcpu-debug-symbols=false",
    "--iree-vm-bytecode-module-strip-source-map",
)


def apply(materials: Materials, before: Artifact, config: IreeCompileConfig) -> Artifact:
    """Compile a graph.

    Returns:
        the module; `stand_in` is one for the host where the host is not of the target's architecture.

    Raises:
        PassError: IREE cannot compile the graph for this processor; the message names the operator.
        MissingExtraError: IREE's compiler is not installed.
    """
    need("iree.compiler")
    signature = _signature(before)
    host = read_host()
    with tempfile.TemporaryDirectory(prefix="edgewise-iree-") as name:
        folder = Path(name)
        source = folder / "model.onnx"
        source.write_bytes(_named(before.data))
        imported = folder / "model.mlir"
        upgrade = () if config.opset is None else ("--opset-version", str(config.opset))
        _run(
            materials.model,
            "iree.compiler.tools.import_onnx",
            [str(source), "-o", str(imported), *upgrade],
            imported,
            "read the graph",
        )
        target = _compile(materials.model, imported, folder / "target.vmfb", config.machine, config.features)
        stand_in = None
        if host.machine != config.machine:
            if host.machine not in TRIPLES:
                raise PassError(f"modules for {config.machine} are judged on the host, and IREE has no {host.machine}")
            own = _compile(materials.model, imported, folder / "host.vmfb", host.machine, features_of(host.machine, ()))
            stand_in = Artifact(own, "vmfb", before.precision, signature)
    return Artifact(target, "vmfb", before.precision, signature, stand_in)


def _named(data: bytes) -> bytes:
    """The graph under the name that engines call: IREE makes it the function's."""
    model = need("onnx").load_model_from_string(data)
    model.graph.name = ENTRY
    return bytes(model.SerializeToString(deterministic=True))


def _signature(before: Artifact) -> Signature:
    """The graph's tensors; a batch that is fixed stays so, since a module takes no other."""
    graph = NamedOnnx(before.data)
    fixed = None if graph.batch in (None, FREE) else graph.batch
    if fixed is None:
        return Signature(graph.inputs, graph.outputs)
    held = [
        tuple(msgspec.structs.replace(spec, shape=(fixed, *spec.shape[1:])) for spec in specs)
        for specs in (graph.inputs, graph.outputs)
    ]
    return Signature(held[0], held[1])


def _compile(model: str, imported: Path, out: Path, machine: Machine, features: Sequence[str]) -> bytes:
    arguments = [str(imported), *_COMMON, *flags_of(machine, features), "-o", str(out)]
    data = _run(model, "iree.compiler.tools.scripts.iree_compile", arguments, out, f"compile it for {machine}")
    if not data.startswith(MAGIC):
        raise PassError("iree-compile gave something that is not an IREE module")
    return data


def _run(model: str, module: str, arguments: Sequence[str], out: Path, what: str) -> bytes:
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, preexec_fn=_limit, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PassError(f"IREE could not {what} of {model} in {_SECONDS} s") from error
    except OSError as error:
        raise PassError(f"IREE's compiler cannot be started: {error.strerror}") from error
    if done.returncode != 0 or not out.is_file():
        raise PassError(f"IREE could not {what}: {explain(done.stderr)}")
    return out.read_bytes()


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))


def explain(log: str) -> str:
    """The cause in a compiler's log, in one sentence. Pure."""
    if found := re.search(r"undefined symbol: (\w+)", log):
        return (
            f"the code needs the function {found.group(1)} of a C library, which modules do not have: "
            "take the float32 form for this processor"
        )
    errors = [line for line in log.splitlines() if "error:" in line or "Error" in line]
    first = (errors[0] if errors else log.strip().splitlines()[-1] if log.strip() else "it said nothing")[:300]
    operator = _OPERATOR.search("\n".join(errors))
    first = re.sub(r"\S*/(model\.(mlir|onnx))", r"\1", first)
    if operator:
        name = operator.group(1) or operator.group(2)
        return f"the operator {name} cannot go there; take another engine, or export the model without it ({first})"
    return first
