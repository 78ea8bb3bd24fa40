"""Floor 9: what the user types."""
