"""Backup and restore of a server: database, keys, settings, broker files, blobs and uploads in one verified archive."""
