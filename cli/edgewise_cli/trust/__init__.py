"""What a server says, verified against the operator's own root."""
