"""Accounts: registration, sign-in, a session per device, credentials, and the signing keys of access tokens.

Owns the tables users, registrations, challenges, email_change_stops, sessions, signing_keys, revocations, audit_entries and
audit_erasures, of the kit's tables the outbox, and the Redis keys `codes:*`, `signin:*`, `usernames:*` and `memory:outbox:auth`.
Publishes CodeIssued, RegistrationRepeated, UserRegistered, UserUpdated, UserDeleted, AccountDeleted, SessionRevoked,
SessionsRevoked, NewDeviceSignedIn, PasswordChanged, PasswordDisabled, UsernameChanged, EmailChangeBegun, EmailChangeStopped,
EmailChanged and AddressClaimed, and streams the revocation feed to every service. Consumes no events and calls no service.
"""
