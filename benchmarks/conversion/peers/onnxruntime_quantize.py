"""Runs in the environment of onnxruntime: `quantize_static` or `quantize_dynamic`, all defaults.

    onnxruntime_quantize.py static|prepared|dynamic MODEL FEEDS.npz OUT

`prepared` runs `quant_pre_process` before `quantize_static`, as the documentation advises. FEEDS
holds one request a row, of all inputs.
"""

import sys
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static


class Rows(CalibrationDataReader):
    def __init__(self, path):
        with np.load(path) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.count, self.next = len(next(iter(self.arrays.values()))), 0

    def get_next(self):
        if self.next == self.count:
            return None
        self.next += 1
        return {name: array[self.next - 1] for name, array in self.arrays.items()}


def main():
    how, model, feeds, out = sys.argv[1:]
    if how == "dynamic":
        quantize_dynamic(model, out)
        return
    if how == "prepared":
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = str(Path(out).with_suffix(".prepared.onnx"))
        quant_pre_process(model, prepared)
        model = prepared
    quantize_static(model, out, Rows(feeds))


main()
