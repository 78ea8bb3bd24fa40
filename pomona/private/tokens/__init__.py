"""One-time tokens: blind RSA signatures, Privacy Pass, what an account may have and what was spent."""
