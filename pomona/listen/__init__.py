"""Floor 1: an address of this machine, and an application served at it until somebody ends it."""
