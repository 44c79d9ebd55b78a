"""Runs in the environment of Olive: its static int8 pass with defaults, on given calibration data.

    olive_quantize.py MODEL FEEDS.npz OUT FOLDER

FEEDS holds one request a row, of all inputs.
"""

import sys
from pathlib import Path

from olive.workflows import run


def main():
    model, feeds, out, folder = sys.argv[1:]
    config = {
        "input_model": {"type": "ONNXModel", "model_path": model},
        "data_configs": [
            {
                "name": "calibration",
                "user_script": str(Path(__file__).with_name("olive_rows.py")),
                "load_dataset_config": {"type": "rows_of_file", "data_dir": feeds},
                "pre_process_data_config": {"type": "skip_pre_process"},
                "post_process_data_config": {"type": "skip_post_process"},
                "dataloader_config": {"type": "row_by_row"},
            }
        ],
        "passes": {"int8": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
        "output_dir": str(Path(folder) / "out"),
        "cache_dir": str(Path(folder) / "cache"),
    }
    run(config)
    (found,) = (Path(folder) / "out").rglob("*.onnx")
    Path(out).write_bytes(found.read_bytes())


main()
