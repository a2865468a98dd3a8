"""`cuebook doctor` and `cuebook check`: everybody is asked once, and what was found is said."""
