"""Runs, their tasks and what waits for a person: started, listed, shown, traced, stepped through, forked."""
