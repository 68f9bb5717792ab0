"""Measures mails: how many a second, for how much processor time, and how soon after their event."""
