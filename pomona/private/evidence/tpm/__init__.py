"""TPM 2.0: a client of its own, and a verifier that needs no TPM."""
