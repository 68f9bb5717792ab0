"""Notices to people, by mail and inside the application.

An event is first decided (`operations/notices.py`): one transaction, which calls nobody. What is then to be delivered is delivered
by a loop of its own (`operations/delivering.py`), for as long as it makes sense; what goes by webhook, by a second one.

Each attempt is held to what its person prefers at that moment (`operations/preference_gate.py`).

Owns the tables notifications, notification_actors, notification_heads, notification_changes, deliveries, delivery_steps,
preferences, counted_mails, digest_items, suppressions, webhooks, webhook_acts and mails, of the kit's tables the inbox's and
the record of erased people, and the Redis keys `inbox:notification` and `memory:inbox:notification`. Publishes no events.
Consumes CodeIssued, RegistrationRepeated, UserRegistered, SessionRevoked, NewDeviceSignedIn, PasswordChanged, PasswordDisabled,
UsernameChanged, EmailChangeBegun, EmailChangeStopped, EmailChanged, AddressClaimed, AccountDeleted, StoryCompleted and
StoryFailed, for which it sends notices, and UserDeleted, on which it erases what it holds about the person. Calls auth for the
address of an account at the moment of sending, so that it stores no addresses itself.
"""
