"""Export, quantize, validate and bundle a model, per target profile.

Import from the modules: `api` for the command line, `convert` and `training_bundle` for
programs, `passes.registry` for what can be done to a model, `errors`.
"""
