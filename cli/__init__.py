"""The command line: wires the parts together and talks to people."""
