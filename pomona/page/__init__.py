"""Floor 1: HTML pages that load nothing, and their charts, as text."""
