"""Adapters to systems outside the mesh: the mail server."""
