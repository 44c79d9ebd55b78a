"""Aggregation strategies, one a file."""
