"""Accounts: registration, sign-in, sessions per device, credentials, and the keys that everybody verifies access tokens with.

Owns the tables users, registrations, challenges, email_change_stops, sessions, signing_keys, revocations, audit_entries and
audit_erasures, of the kit's tables the outbox, and the Redis keys `codes:*`, `signin:*`, `usernames:*` and `memory:outbox:auth`.
Gives CodeIssued, RegistrationRepeated, UserRegistered, UserUpdated, UserDeleted, AccountDeleted, SessionRevoked, SessionsRevoked,
NewDeviceSignedIn, PasswordChanged, PasswordDisabled, UsernameChanged, EmailChangeBegun, EmailChangeStopped, EmailChanged and
AddressClaimed, and to every service the revocation feed. Takes no events and calls no service.
"""
