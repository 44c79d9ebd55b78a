"""Runs golden inputs through an engine: the whole program that is run inside a sysroot, and on the host.

It stands alone: Python, NumPy and the engine are all that it needs, and its own text is given to
`python -c`, so that nothing is written into a sysroot. A request comes by the standard input, the
answer goes to what was the standard output; both are packed by `pack`. What an engine prints goes
to the error stream.

Integers stand for real numbers as on the device: see `edgewise_agent.engines.quantize`.

Sources: Linux, arch/arm/include/uapi/asm/hwcap.h and arch/arm64/include/uapi/asm/hwcap.h;
getauxval(3); Intel SDM volume 2A, CPUID.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import os
import platform
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

TYPE_CHECKING = False  # typing costs half a second under an emulator
if TYPE_CHECKING:
    from typing import Any

MAX_HEADER = 1 << 20
ENTRY = "model"
"""The function of an IREE module."""
DISTRIBUTIONS = {
    "onnxruntime": "onnxruntime",
    "litert": "ai-edge-litert",
    "tflite-runtime": "tflite-runtime",
    "iree": "iree-base-runtime",
}
DTYPES = {
    "BOOL": "|b1",
    "INT8": "|i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "|u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_ARM64 = (
    *("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "cpuid"),
    *("asimdrdm", "jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4", "asimddp", "sha512", "sve"),
    *("asimdfhm", "dit", "uscat", "ilrcpc", "flagm", "ssbs", "sb", "paca", "pacg"),
)
_ARM32 = (
    *("swp", "half", "thumb", "26bit", "fastmult", "fpa", "vfp", "edsp", "java", "iwmmxt", "crunch", "thumbee"),
    *("neon", "vfpv3", "vfpv3d16", "tls", "vfpv4", "idiva", "idivt", "vfpd32", "lpae", "evtstrm"),
)
_X86 = {
    # feature: leaf, subleaf, register of (eax, ebx, ecx, edx), bit
    "pni": (1, 0, 2, 0),
    "ssse3": (1, 0, 2, 9),
    "fma": (1, 0, 2, 12),
    "cx16": (1, 0, 2, 13),
    "sse4_1": (1, 0, 2, 19),
    "sse4_2": (1, 0, 2, 20),
    "movbe": (1, 0, 2, 22),
    "popcnt": (1, 0, 2, 23),
    "xsave": (1, 0, 2, 26),
    "avx": (1, 0, 2, 28),
    "f16c": (1, 0, 2, 29),
    "bmi1": (7, 0, 1, 3),
    "avx2": (7, 0, 1, 5),
    "bmi2": (7, 0, 1, 8),
    "avx512f": (7, 0, 1, 16),
    "avx512dq": (7, 0, 1, 17),
    "avx512bw": (7, 0, 1, 30),
    "avx512vl": (7, 0, 1, 31),
    "avx512_vnni": (7, 0, 2, 11),
    "amx_int8": (7, 0, 3, 25),
    "avx512_fp16": (7, 0, 3, 23),
    "avx_vnni": (7, 1, 0, 4),
    "avx512_bf16": (7, 1, 0, 5),
    "lahf_lm": (0x80000001, 0, 2, 0),
    "abm": (0x80000001, 0, 2, 5),
}


def pack(header: Mapping[str, Any], arrays: Mapping[str, Any]) -> bytes:
    """A JSON-safe header and named arrays as bytes: length of the header, header, raw little-endian data."""
    listed = [
        {"name": name, "dtype": array.dtype.newbyteorder("<").str, "shape": list(array.shape)}
        for name, array in arrays.items()
    ]
    head = json.dumps({**header, "arrays": listed}).encode()
    data = [a.astype(a.dtype.newbyteorder("<"), copy=False).tobytes() for a in arrays.values()]
    return b"".join([struct.pack("<Q", len(head)), head, *data])


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `pack` packed.

    Raises:
        ValueError: the bytes are not what it makes.
    """
    import numpy as np

    if len(data) < 8:
        raise ValueError(f"{len(data)} bytes are no message")
    (length,) = struct.unpack_from("<Q", data)
    if length > min(MAX_HEADER, len(data) - 8):
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(data[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    arrays, at = {}, 8 + length
    for entry in header.pop("arrays"):
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        if entry["dtype"] not in DTYPES.values() or any(not isinstance(n, int) or n < 0 for n in shape):
            raise ValueError(f"array {str(entry)[:200]}")
        count = 1
        for size in shape:
            count *= size
        if at + count * dtype.itemsize > len(data):
            raise ValueError("the message is cut off")
        arrays[entry["name"]] = np.frombuffer(data, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    return header, arrays


def features(machine: str) -> list[str]:
    """What this process may use of the processor, as Linux spells it; under an emulator, what that grants.

    Of x86, those that the engines' kernels choose by.
    """
    if machine == "x86_64":
        return [name for name, (leaf, sub, register, bit) in _X86.items() if cpuid(leaf, sub)[register] >> bit & 1]
    names = _ARM64 if machine == "aarch64" else _ARM32 if machine.startswith("arm") else ()
    library = ctypes.CDLL(None)
    library.getauxval.restype, library.getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    bits = library.getauxval(16)
    if machine == "riscv64":
        return [chr(ord("a") + bit) for bit in range(26) if bits >> bit & 1]
    return [name for bit, name in enumerate(names) if bits >> bit & 1]


def cpuid(leaf: int, subleaf: int) -> tuple[int, ...]:
    """Registers eax, ebx, ecx, edx that the instruction gives; zeros above the highest leaf."""
    if leaf & 0xFFFF and cpuid(leaf & 0x80000000, 0)[0] < leaf:
        return (0, 0, 0, 0)
    # push rbx; mov r8, rdx; mov eax, edi; mov ecx, esi; cpuid; mov [r8], eax; [r8+4], ebx; [r8+8], ecx;
    # [r8+12], edx; pop rbx; ret
    code = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(code)
        place = ctypes.c_char.from_buffer(page)
        registers = (ctypes.c_uint32 * 4)()
        call = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(ctypes.addressof(place))
        call(leaf, subleaf, ctypes.addressof(registers))
        found = tuple(registers)
        del place, call
    return found


def quantize(values: Any, scale: float, zero_point: int, dtype: Any) -> Any:
    """Nearest integers, half away from zero, saturated."""
    import numpy as np

    scaled = np.divide(values, np.float32(scale), dtype=np.float32)
    whole = np.trunc(scaled)
    whole += np.copysign(np.abs(scaled - whole) >= 0.5, scaled)
    limits = np.iinfo(dtype)
    return np.clip(whole.astype(np.float64) + zero_point, limits.min, limits.max).astype(dtype)


def dequantize(integers: Any, scale: float, zero_point: int) -> Any:
    """The real numbers that integers stand for."""
    import numpy as np

    centred = (integers.astype(np.int64) - zero_point).astype(np.float32)
    return np.multiply(centred, np.float32(scale), dtype=np.float32)


def open_onnx(data: bytes, spec: Mapping[str, Any]) -> tuple[Callable[..., Any], int | None]:
    """A function that answers feeds, and the batch that it takes: None for any."""
    module = importlib.import_module("onnxruntime")
    options = module.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Else it guesses by the bytes, and one file may be both.
    options.add_session_config_entry("session.load_model_format", "ORT" if spec.get("format") == "ort" else "ONNX")
    session = module.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [one["name"] for one in spec["outputs"]]
    fixed = {arg.shape[0] for arg in session.get_inputs() if arg.shape and isinstance(arg.shape[0], int)}
    batch = fixed.pop() if len(fixed) == 1 else None
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True)), batch


def open_tflite(data: bytes, spec: Mapping[str, Any]) -> tuple[Callable[..., Any], int | None]:
    """The same of a TFLite file, in LiteRT or tflite-runtime."""
    import numpy as np

    package = "ai_edge_litert" if spec["engine"] == "litert" else "tflite_runtime"
    interpreter = importlib.import_module(f"{package}.interpreter").Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    aliases: dict[int, str] = {}
    signatures = interpreter.get_signature_list()
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        for details in (runner.get_input_details(), runner.get_output_details()):
            aliases.update({int(one["index"]): name for name, one in details.items()})

    def chosen(specs: Sequence[Mapping[str, Any]], details: Sequence[Any]) -> list[tuple[Any, Any]]:
        by_name = {str(one["name"]): one for one in details}
        by_name.update({aliases[int(one["index"])]: one for one in details if int(one["index"]) in aliases})
        if all(one["name"] in by_name for one in specs):
            return [(one, by_name[one["name"]]) for one in specs]
        return list(zip(specs, details, strict=True))

    taken = chosen(spec["inputs"], interpreter.get_input_details())
    given = chosen(spec["outputs"], interpreter.get_output_details())

    def affine(one: Mapping[str, Any], details: Mapping[str, Any]) -> tuple[float, int] | None:
        if not one["dtype"].startswith("FP") or np.dtype(details["dtype"]).kind == "f":
            return None
        found = details["quantization_parameters"]
        return float(found["scales"][0]), int(found["zero_points"][0])

    def call(feeds: Mapping[str, Any]) -> dict[str, Any]:
        for one, details in taken:
            by, dtype = affine(one, details), np.dtype(details["dtype"])
            value = feeds[one["name"]]
            interpreter.set_tensor(details["index"], quantize(value, *by, dtype) if by else value.astype(dtype))
        interpreter.invoke()
        found = {}
        for one, details in given:
            by, value = affine(one, details), interpreter.get_tensor(details["index"])
            found[one["name"]] = dequantize(value, *by) if by else value
        return found

    first = {int(details["shape"][0]) for _, details in taken if len(details["shape"])}
    return call, first.pop() if len(first) == 1 else None


def open_iree(data: bytes, spec: Mapping[str, Any]) -> tuple[Callable[..., Any], int | None]:
    """The same of an IREE module, which does not name its tensors."""
    import numpy as np

    runtime = importlib.import_module("iree.runtime")
    context = runtime.SystemContext(config=runtime.Config("local-sync"))
    module = runtime.VmModule.copy_buffer(context.instance, data)
    context.add_vm_module(module)
    function = context.modules[module.name][ENTRY]

    def call(feeds: Mapping[str, Any]) -> dict[str, Any]:
        found = function(*(np.ascontiguousarray(feeds[one["name"]]) for one in spec["inputs"]))
        answers = found if isinstance(found, (tuple, list)) else (found,)
        return {one["name"]: np.array(a) for one, a in zip(spec["outputs"], answers, strict=True)}

    return call, None


OPENERS = {"onnxruntime": open_onnx, "litert": open_tflite, "tflite-runtime": open_tflite, "iree": open_iree}


def answer(call: Callable[..., Any], batch: int | None, spec: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
    """Outputs of all samples, in order; a file whose batch is fixed answers group by group, the last filled up."""
    import numpy as np

    if len({one["shape"][0] if one["shape"] else None for one in spec["inputs"]}) != 1:
        return call(inputs)  # no batch in common: the golden inputs are one request, whole
    free = all(one["shape"] and one["shape"][0] == -1 for one in spec["inputs"])
    total = len(next(iter(inputs.values())))
    if not free:
        said = max((one["shape"][0] for one in spec["inputs"] if one["shape"]), default=total)
        batch = None if said in (-1, total) or said < 1 else said
    if batch is None or batch == total:
        return call(inputs)
    pieces: dict[str, list[Any]] = {}
    for start in range(0, total, batch):
        kept = min(batch, total - start)
        group = {name: np.ascontiguousarray(array[start : start + kept]) for name, array in inputs.items()}
        if kept < batch:
            group = {n: np.concatenate([a, np.repeat(a[-1:], batch - kept, axis=0)]) for n, a in group.items()}
        for name, rows in call(group).items():
            pieces.setdefault(name, []).append(rows[:kept])
    return {name: np.concatenate(rows) for name, rows in pieces.items()}


def serve(request: bytes) -> bytes:
    """Answer one request. Whatever an engine raises is in the answer's `error`."""
    spec: dict[str, Any] = json.loads(request[8 : 8 + struct.unpack_from("<Q", request)[0]])
    sys.path[:0] = spec["paths"]
    machine = platform.machine()
    if struct.calcsize("P") == 4 and machine in ("aarch64", "armv8l"):
        machine = "armv7l"
    told: dict[str, Any] = {"machine": machine, "features": features(machine), "stage": "import"}
    outputs: dict[str, Any] = {}
    try:
        import numpy as np

        told["version"] = metadata.version(DISTRIBUTIONS[spec["engine"]])
        _, arrays = unpack(request)
        inputs = {name[6:]: array for name, array in arrays.items() if name.startswith("input.")}
        told["stage"], started = "load", time.perf_counter()
        call, batch = OPENERS[spec["engine"]](arrays["model"].tobytes(), spec)
        told["load_s"], told["stage"], started = time.perf_counter() - started, "run", time.perf_counter()
        found = answer(call, batch, spec, inputs)
        told["run_s"], told["stage"] = time.perf_counter() - started, ""
        for one in spec["outputs"]:
            array, wanted = np.asarray(found[one["name"]]), np.dtype(DTYPES[one["dtype"]])
            outputs[one["name"]] = array.astype(wanted) if array.dtype.kind == wanted.kind == "f" else array
    except Exception as error:  # noqa: BLE001 - an engine's exceptions have no base of their own
        told["error"] = f"{type(error).__name__}: {str(error)[:1500]}"
        outputs = {}
    return pack(told, outputs)


def bound(memory: int, cpu_s: int, written: int) -> None:
    """Limit this process, for good: bytes of its own data, seconds of processor time, bytes of a file; no core."""
    import resource

    for what, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, written),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def main() -> None:
    """One request in, one answer out. Arguments are those of `bound`; without, nothing is limited here."""
    if sys.argv[1:]:
        bound(*map(int, sys.argv[1:]))
    out = os.dup(1)
    os.dup2(2, 1)
    reply = serve(sys.stdin.buffer.read())
    with os.fdopen(out, "wb") as stream:
        stream.write(reply)


if __name__ == "__main__":
    main()
