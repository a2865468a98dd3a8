"""`cuebook top`: what goes on in a space now, on a screen that follows it."""
