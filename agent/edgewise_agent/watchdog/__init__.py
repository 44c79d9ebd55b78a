"""Tells the service manager that the agent makes progress, as long as it does."""
