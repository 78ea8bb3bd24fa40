"""Floor 9: the private cloud: encrypted to attested nodes, anonymous, transparent. Rooms of its own, on floors of their own."""
