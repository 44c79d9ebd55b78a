"""Federated rounds: the pure coordinator, checks of updates, and the aggregation strategies."""
