"""The log itself: read, followed, published to, written to files; and the types of its events."""
