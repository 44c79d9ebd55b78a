"""Observing: the durable outbox, and the windows of telemetry and drift that fill it.

Import from the modules: `outbox`, `observer`, `errors`.
"""
