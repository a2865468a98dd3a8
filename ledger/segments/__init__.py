"""History in files: sealed segments of the log, each with what proves it and with an index to find things in it."""
