"""The log: subjects, envelopes, event types, and reading and appending on JetStream. Imports nothing of ours."""
