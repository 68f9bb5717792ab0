"""Every SQL statement of the auth service, one module per table, and its Redis scripts."""

from __future__ import annotations

from . import audit, batches, challenges, email_stops, keys, registrations, revocations, sessions, users

__all__ = ["audit", "batches", "challenges", "email_stops", "keys", "registrations", "revocations", "sessions", "users"]
