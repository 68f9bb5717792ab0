"""Every SQL statement of the story service."""

from __future__ import annotations

from . import admissions, attempts, stories

__all__ = ["admissions", "attempts", "stories"]
