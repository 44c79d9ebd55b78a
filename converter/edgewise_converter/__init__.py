"""Export, quantize, validate and bundle a model, per target profile."""
