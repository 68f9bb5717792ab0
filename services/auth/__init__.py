"""Accounts: registration, sign-in, sessions and the keys that everybody verifies access tokens with.

Owns the tables users, registrations, sessions, signing_keys and outbox, and the Redis keys `codes:*` and `signin:*`.
Gives CodeIssued, RegistrationRepeated and UserRegistered. Takes no events and calls no service.
"""
