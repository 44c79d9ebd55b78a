"""Find, prove and bundle the best form of a model, per target profile.

Import from the modules: `search.converting` for conversions, `training_bundle` for what devices train from,
`importing.importer` for finished files, `passes.registry` for what can be done to a model, `errors`.
"""
