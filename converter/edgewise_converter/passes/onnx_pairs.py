"""Writing QuantizeLinear / DequantizeLinear pairs into a graph, where a plan says that values are int8."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.libraries import need
from edgewise_converter.passes import onnx_numbers
from edgewise_converter.passes.onnx_chains import MIXING, Chain
from edgewise_converter.passes.onnx_numbers import Affine
from edgewise_converter.passes.onnx_scopes import Scope, attribute


def insert_pairs(
    scope: Scope, chain: Chain, affine: dict[str, Affine], *, reduce_range: bool, per_channel: bool
) -> None:
    """Turn what the plan names into int8; nodes are left unsorted.

    A tensor that int8 kernels make is int8 for all who read it. One that comes in as float32 is
    turned into int8 for those alone that compute in it.

    Args:
        scope: the graph; it is changed.
        chain: the plan of it.
        affine: steps of each tensor whose scale others share, by name.
        reduce_range: weights of 7 bits.
        per_channel: weights with a scale for each output channel.
    """
    _Writer(scope, chain, affine, reduce_range, per_channel).write()


class _Writer:
    def __init__(
        self, scope: Scope, chain: Chain, affine: dict[str, Affine], reduce_range: bool, per_channel: bool
    ) -> None:
        self._onnx = need("onnx")
        self._scope, self._chain, self._affine = scope, chain, affine
        self._reduce, self._per_channel = reduce_range, per_channel
        self._mark = f"_{scope.number}" if scope.number else ""

    def write(self) -> None:
        nodes = list(self._scope.graph.node)
        makers = {name: node for node in nodes for name in node.output}
        for node in nodes:
            if node.output[0] in self._chain.heavy:
                self._narrow_weights(node)
            elif node.output[0] in self._chain.between and node.op_type in MIXING:
                self._narrow_constants(node)
        for name, root in self._chain.narrow.items():
            maker = makers.get(name)
            if maker is not None and self._is_narrow(maker, makers):
                for place, output in enumerate(maker.output):
                    if output == name:
                        maker.output[place] = f"{name}_wide{self._mark}"
                self._pair(f"{name}_wide{self._mark}", name, name, root)
                continue
            back = f"{name}_narrow{self._mark}"
            self._pair(name, back, name, root)
            for node in nodes:
                if self._is_layer(node):
                    for place, source in enumerate(node.input):
                        if source == name:
                            node.input[place] = back

    def _is_layer(self, node: Any) -> bool:
        names = {name.removesuffix(f"_wide{self._mark}") for name in node.output}
        return any(name in self._chain.heavy or name in self._chain.between for name in names)

    def _is_narrow(self, maker: Any, makers: dict[str, Any]) -> bool:
        """Whether int8 kernels make what the node gives, itself or as the clamp behind one."""
        if self._is_layer(maker):
            return True
        source = makers.get(maker.input[0]) if maker.input and maker.output[0] in self._chain.clamped else None
        return source is not None and self._is_layer(source)

    def _pair(self, source: str, target: str, called: str, root: str) -> None:
        steps = self._affine[root]
        scale = self._constant(f"{root}_scale{self._mark}", np.asarray(steps.scale, np.float32))
        zero = self._constant(f"{root}_zero{self._mark}", np.asarray(steps.zero, steps.dtype))
        narrow = f"{called}_int8{self._mark}"
        make = self._onnx.helper.make_node
        self._scope.graph.node.extend(
            [
                make("QuantizeLinear", [source, scale, zero], [narrow], name=f"{called}_quantize"),
                make("DequantizeLinear", [narrow, scale, zero], [target], name=f"{called}_dequantize"),
            ]
        )

    def _narrow_weights(self, node: Any) -> None:
        array = self._scope.weights(node.input[1])
        across = bool(attribute(node, "transB", 0)) if node.op_type == "Gemm" else node.op_type == "Conv"
        axis = 0 if across else 1
        by_channel = axis if self._per_channel and (node.op_type != "MatMul" or array.ndim == 2) else None
        root = self._chain.narrow[node.input[0]]
        step = float(self._affine[root].scale)
        bias = self._scope.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        floor = None if bias is None else onnx_numbers.bias_floor(bias.reshape(-1), step)
        integers, scale = onnx_numbers.weights(array, by_channel, reduce_range=self._reduce, floor=floor)
        name = node.output[0]
        # onnxruntime's kernels of products want the zeros, though they are the default
        zero = np.zeros(scale.shape, np.int8) if node.op_type != "Conv" else None
        node.input[1] = self._widened(f"{name}_weights", integers, scale, by_channel, zero)
        if bias is not None:
            steps, scale = onnx_numbers.bias_steps(bias.reshape(-1), step, scale)
            node.input[2] = self._widened(f"{name}_bias", steps, scale, None if by_channel is None else 0)

    def _narrow_constants(self, node: Any) -> None:
        for place, name in enumerate(node.input):
            array = self._scope.array(name)
            if array is not None:
                signed = next(iter(self._affine.values())).signed
                steps = onnx_numbers.activation(float(array.min()), float(array.max()), signed=signed, symmetric=False)
                least, most = (-128, 127) if signed else (0, 255)
                integers = np.clip(np.rint(array / steps.scale) + steps.zero, least, most).astype(steps.dtype)
                called = f"{node.output[0]}_operand{place}"
                zero = np.asarray(steps.zero, steps.dtype)
                node.input[place] = self._widened(called, integers, np.asarray(steps.scale), None, zero)

    def _widened(
        self,
        name: str,
        integers: NDArray[Any],
        scale: NDArray[np.float32],
        axis: int | None,
        zero: NDArray[Any] | None = None,
    ) -> str:
        """Constant integers as real numbers: what a DequantizeLinear gives, by its name."""
        inputs = [self._constant(f"{name}_integers{self._mark}", integers)]
        inputs.append(self._constant(f"{name}_scale{self._mark}", np.asarray(scale, np.float32)))
        if zero is not None:
            inputs.append(self._constant(f"{name}_zero{self._mark}", zero))
        more = {} if axis is None or not scale.ndim else {"axis": axis}
        target = f"{name}_real{self._mark}"
        node = self._onnx.helper.make_node("DequantizeLinear", inputs, [target], name=f"{name}_dequantize", **more)
        self._scope.graph.node.append(node)
        return target

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        return self._scope.add(
            self._onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        )
