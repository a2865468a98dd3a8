"""`cuebook demo` and `just edge`: stories played on real servers and processes, and judged at their end."""
