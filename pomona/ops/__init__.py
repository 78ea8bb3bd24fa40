"""Floor 1: arrays in, arrays out. Attention, cross-entropy, norms, rotary positions; no configuration, no mesh."""
