"""The worker: takes jobs from the server, checks what it signs, and signs with its own keys."""
