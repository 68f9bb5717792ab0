"""All SQL statements of the story service, one module per subject, and the Redis stream of a story's progress."""

from __future__ import annotations

from . import admissions, attempts, links, request_batches, requests, stories

__all__ = ["admissions", "attempts", "links", "request_batches", "requests", "stories"]
