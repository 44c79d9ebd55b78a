"""Proof: a bundle's golden inputs, run on the target's own instruction set before anything leaves."""
