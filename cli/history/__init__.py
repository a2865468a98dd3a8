"""What the log says, for all who show it: places in it, states folded from it, and what differs between them."""
