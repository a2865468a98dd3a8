"""Tables derived from the log, kept with their checkpoints in PostgreSQL."""
