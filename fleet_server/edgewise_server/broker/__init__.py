"""The embedded broker of the demo, on the loopback address only."""
