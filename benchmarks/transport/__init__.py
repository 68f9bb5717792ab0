"""What a call costs on each transport of kit's server: `python -m benchmarks.transport`."""
