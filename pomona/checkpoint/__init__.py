"""Floor 3: logical trees on disk, never tied to a mesh."""
