"""What the mesh costs, measured beside what it is built on: every run measures both, in turns, on the same processors."""
