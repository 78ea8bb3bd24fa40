"""Floor 3: adapters as files, and several of them at hand for one batch."""
