"""Operators' tools: the dead letters of every service, and the rate limiter's methods for administrators.

Owns no table and no key in Redis, publishes and consumes no events. Calls every service that keeps dead letters, and the limiter,
with the administrator's own access token, so that it has no power beyond the administrator's. Calls auth for keys and revocations.
"""
