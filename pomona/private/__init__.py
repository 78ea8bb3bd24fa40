"""Floor 9: the private cloud: encrypted to attested nodes, anonymous, transparent; with floors of its own."""
