"""Verification of signed metadata and the online signer; no database."""
