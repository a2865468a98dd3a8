"""The audit log: searched, verified against its seals, and proofs of single events."""
