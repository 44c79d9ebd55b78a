"""What a target is: the profile schema, the catalogue of boards, and matching.

Import from the modules: `schema`, `catalogue`, `matching`, `listing`, `errors`.
"""
