"""What can be done to a model on its way to a device: one pass a file, listed by `registry`."""
