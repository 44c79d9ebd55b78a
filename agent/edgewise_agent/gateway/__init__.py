"""A board that runs no agent of its own, served through this one: its line, its firmware, its engine."""
