"""Room rpc."""
