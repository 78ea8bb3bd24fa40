"""Floor 5: from a trained model to a smaller one. Every stage reads a run folder and writes a run folder."""
