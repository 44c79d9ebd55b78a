"""What each TFLite operator is in C: one module a family, one table."""
