"""Floor 2: the AFM decoder, its presets and its arithmetic."""
