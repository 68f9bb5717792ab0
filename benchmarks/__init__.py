"""Benchmarks of the mesh. Every run also measures a baseline, alternately and on the same processors, and reports the ratio."""
