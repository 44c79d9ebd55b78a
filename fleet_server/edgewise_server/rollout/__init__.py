"""Phased rollouts: what a plan is, and the pure policy that decides the next steps."""
