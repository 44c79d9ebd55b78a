"""Learning: federated rounds with the inference runtime alone; local data never leave.

Import from the modules: `client`, `round`, `errors`. `train_child` is a program of its own.
"""
