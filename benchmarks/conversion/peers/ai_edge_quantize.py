"""Runs in the environment of ai-edge-quantizer: a default recipe.

    ai_edge_quantize.py dynamic|static MODEL FEEDS.npz OUT

FEEDS holds one request a row, of all inputs by the names of the file's signature.
"""

import sys

import numpy as np
from ai_edge_quantizer import quantizer, recipe


def main():
    how, model, feeds, out = sys.argv[1:]
    worker = quantizer.Quantizer(model)
    if how == "dynamic":
        worker.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        result = worker.quantize()
    else:
        worker.load_quantization_recipe(recipe.static_wi8_ai8())
        with np.load(feeds) as arrays:
            named = {name: arrays[name] for name in arrays.files}
        count = len(next(iter(named.values())))
        rows = [{name: array[i] for name, array in named.items()} for i in range(count)]
        signatures = worker.calibrate({"serving_default": rows})
        result = worker.quantize(signatures)
    result.export_model(out, overwrite=True)


main()
