"""Floor 4: one loop for every objective."""
