"""Adapters to the models outside the mesh that write stories."""
