"""All SQL statements of the social service, one module per subject."""

from __future__ import annotations

from . import erasure, handles, profiles, stances, visibility

__all__ = ["erasure", "handles", "profiles", "stances", "visibility"]
