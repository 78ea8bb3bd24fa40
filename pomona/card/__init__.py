"""Floor 7: what came of a model's life, as one page."""
