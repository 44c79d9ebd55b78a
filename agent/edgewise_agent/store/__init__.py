"""The content-addressed store of bundles and files."""
