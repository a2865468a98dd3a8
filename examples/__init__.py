"""Programs that show cuebook at work."""
