"""Counts changes of profiles. Owns the table changes, takes UserUpdated, and calls auth for its keys."""
