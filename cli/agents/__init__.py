"""Agents: who is there, taking them out of service, and what they would answer now to what they were asked before."""
