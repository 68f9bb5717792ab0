"""Telling people: mail and in-app notifications.

Owns the tables notifications, mails, processed_events, dead_letters and erased_subjects, and the Redis stream `inbox:notification`.
Gives no events. Takes CodeIssued, RegistrationRepeated, UserRegistered, SessionRevoked, PasswordChanged, PasswordDisabled,
EmailChanged, AddressClaimed, StoryCompleted and StoryFailed, of which it tells, and UserDeleted, on which it erases what it holds
about the person. Calls auth for the address of an account at the moment of sending, so that it keeps no addresses of its own.
"""
