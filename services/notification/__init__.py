"""Telling people: mail and in-app notifications.

Owns the tables notifications, mails, processed_events and dead_letters, and the Redis stream `inbox:notification`. Gives no events.
Takes CodeIssued, RegistrationRepeated, UserRegistered, StoryCompleted and StoryFailed. Calls auth for the address of an account at
the moment of sending, so that it keeps no addresses of its own.
"""
