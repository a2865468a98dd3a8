"""The service processes: one of each kind, or several that do the same, until they are told to stop."""
