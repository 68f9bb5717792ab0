"""What operators do: today the dead letters of every service.

Owns no table and no key in Redis, gives and takes no events. Calls every service that keeps dead letters in the administrator's own
name: it has no power over the others that the person who asks does not have. Calls auth for keys and revocations.
"""
