"""Counts changes of profiles. Owns the table changes, takes the event UserUpdated, and fetches keys from auth."""
