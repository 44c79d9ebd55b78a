"""The query language of groups."""
