"""Alembic migrations, run by edgewise_server.schema."""
