"""Latency, throughput and memory of bundles and model files on this machine, several in turn."""
