"""The level-triggered loop that moves rollouts, rounds and jobs forward."""
