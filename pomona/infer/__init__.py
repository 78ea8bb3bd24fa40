"""Floor 4: run a trained model forward. KV cache, sampling, generation."""
