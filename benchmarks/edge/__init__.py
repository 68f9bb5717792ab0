"""What reading and requesting a story cost through the edge, beside the same endpoints in FastAPI."""
