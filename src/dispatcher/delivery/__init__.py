"""HTTP out: from an outbox row to a recorded attempt, and from many attempts to settled deliveries."""
