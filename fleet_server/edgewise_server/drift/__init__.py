"""Distances between a window of sketches and the baseline, and when they mean drift."""
