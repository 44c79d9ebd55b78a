"""The agent as a package for one kind of board: everything in one file, installed there without a network."""
