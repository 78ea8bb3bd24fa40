"""Floor 8: what is run. One file is one model's life."""
