"""`python -m benchmarks.auth`: what signing in costs, beside argon2 and ES256 themselves.

A real auth process on real Postgres and Redis, called over gRPC. Whoever calls it runs in a process of its own; its processor time
is measured and told, for it comes out of the same cores.
"""
