"""Reproducible training runs, data fingerprints, evaluation, and the training-step graph."""
