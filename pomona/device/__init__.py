"""The device runtime: a palettized model out of one file, on a CPU, without JAX."""
