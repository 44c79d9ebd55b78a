"""What the server does, in transactions that its callers open."""
