"""Updates of federated clients on their way in."""
