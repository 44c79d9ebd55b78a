"""Tables, one module a subject. `edgewise_server.schema` imports them all, for migrations."""
