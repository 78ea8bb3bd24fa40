"""Floor 3: from raw text to deterministic batches. Sources, tokenizer, token files, packing, mixtures."""
