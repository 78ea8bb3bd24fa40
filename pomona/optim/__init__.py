"""Floor 3: AdaStar, AdamW and their schedules as optax transformations."""
