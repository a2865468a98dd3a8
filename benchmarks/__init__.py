"""Throughput and latency of cuebook on one machine: `just bench`."""
