"""The customer-support desk and its five agents."""
