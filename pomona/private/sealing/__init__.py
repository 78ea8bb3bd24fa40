"""What is encrypted to whom: HPKE, Binary HTTP, oblivious HTTP, and a request that several nodes could open."""
