"""Floor 10: what the user types."""
