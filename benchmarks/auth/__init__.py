"""The benchmark of signing in, run by `python -m benchmarks.auth`; the baselines are argon2 and ES256 alone.

A real auth process on real Postgres and Redis is called over gRPC. The callers run in a process of their own, whose processor time
is reported too, because it uses the same cores.
"""
