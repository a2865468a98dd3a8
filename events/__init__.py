"""Event and command types, the envelope, subjects, the log and its errors."""
