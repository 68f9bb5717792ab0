"""Telling people: mail and in-app notifications.

Owns the tables notifications, mails, processed_events, dead_letters, dead_letter_decisions, erased_subjects and redis_memories, and
the Redis keys `inbox:notification` and `memory:inbox:notification`.
Gives no events. Takes CodeIssued, RegistrationRepeated, UserRegistered, SessionRevoked, NewDeviceSignedIn, PasswordChanged,
PasswordDisabled, UsernameChanged, EmailChangeBegun, EmailChangeStopped, EmailChanged, AddressClaimed, AccountDeleted,
StoryCompleted and StoryFailed, of which it tells, and UserDeleted, on which it erases what it holds about the person. Calls auth
for the address of an account at the moment of sending, so that it keeps no addresses of its own.
"""
