"""The orchestrator: sagas, placement, retries and timers, folded from the log."""
