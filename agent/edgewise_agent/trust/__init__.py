"""What this device trusts: TUF metadata over MQTT, assignments, and a clock that cannot be wound back."""
