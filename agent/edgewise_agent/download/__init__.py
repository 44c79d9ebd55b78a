"""Fetching signed files as content-addressed chunks."""
