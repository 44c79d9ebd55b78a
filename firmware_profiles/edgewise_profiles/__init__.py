"""What a target is: the profile schema, the catalogue of boards, and matching."""
