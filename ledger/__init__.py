"""The log as evidence: exports that carry its bytes, a Merkle tree over them, signed checkpoints, and proofs."""
