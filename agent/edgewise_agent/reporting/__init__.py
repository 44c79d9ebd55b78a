"""What the fleet is told: reported state, and the delivery of the outbox."""
