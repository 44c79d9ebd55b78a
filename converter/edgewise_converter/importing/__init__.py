"""Bundles from finished model files: an `.onnx` or `.tflite` and a sample of its inputs, no training run."""
