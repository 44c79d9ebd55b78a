"""The artifact store: content-addressed files in a folder."""
