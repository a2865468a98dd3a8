"""A shop behind a link that may be cut: an agent that goes on, and a sensor that publishes."""
