"""Floor 7: to and from the formats of the ecosystem."""
