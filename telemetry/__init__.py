"""Traces: which span follows from which event, and how spans reach a collector."""
