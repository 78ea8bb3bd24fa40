"""Who asks: chooses nodes, checks them, seals a request, opens the answer. Without JAX."""
