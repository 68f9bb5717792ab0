"""What a server takes of one call, whichever the transport."""

MESSAGE_BYTES = 1 << 20
METADATA_BYTES = 64 << 10
"""More than the edge lets in, as it answers for large headers itself. gRPC's defaults of 8 and 16 KiB refuse at random between the
two, with a status that reads as a rate limit."""
