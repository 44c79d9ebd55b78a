"""The device agent: verify, install, serve, observe, learn."""
