"""Serving: the table of active models and the Open Inference Protocol v2 over HTTP.

Import from the modules: `table`, `http`, `errors`.
"""
