"""Floor 0: what every room stands on. Configuration, errors, files, run folders, chips. No JAX, no NumPy."""
