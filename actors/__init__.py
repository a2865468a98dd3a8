"""Actors: pure decide and evolve in the middle, effects at the edge."""
