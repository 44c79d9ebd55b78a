"""What `benchmarks/converter.py` measures: models with data, peers in environments of their own, one harness."""
