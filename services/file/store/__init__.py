"""All SQL statements of the file service, one module per subject."""

from __future__ import annotations

from . import checking, claims, files, parts, quotas, removal, sweeping

__all__ = ["checking", "claims", "files", "parts", "quotas", "removal", "sweeping"]
