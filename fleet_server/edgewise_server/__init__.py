"""The fleet server: registry, trust, devices, rollouts, monitoring, federation."""
