"""Floor 5: from a parent to the model that a device can hold."""
