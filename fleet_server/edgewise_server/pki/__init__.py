"""Device identities: intermediate key, leaf certificates, revocation list."""
