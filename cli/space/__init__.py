"""A space as a whole: the generations of its log, and old history in segments."""
