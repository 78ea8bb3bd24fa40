"""Floor 4: run a trained model forward. Slots with a KV cache, sampling, generation."""
