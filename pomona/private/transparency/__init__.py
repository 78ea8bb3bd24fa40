"""The public log: a Merkle tree in tiles, signed checkpoints, proofs, and what its leaves say."""
