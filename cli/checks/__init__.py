"""What can be wrong with a space, looked for: one module per area, shared by `cuebook doctor` and `cuebook check`."""
