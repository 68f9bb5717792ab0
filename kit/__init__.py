"""Plumbing that every service shares. It knows no domain noun and imports no service."""
