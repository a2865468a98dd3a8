"""The orchestrator: an actor folded from the log that places, retries, escalates, runs sagas and undoes them."""
