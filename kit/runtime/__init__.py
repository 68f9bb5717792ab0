"""Room runtime: what makes a Python program a process of the mesh.

Promises: one command line for every service (`process`); settings that are read once, checked, and refused in a sentence each
when they are unknown, missing or unfit for production (`settings`); logs, traces and metrics in the field's formats (ECS,
OpenTelemetry, Prometheus); gRPC health that follows the dependencies (`health`); the clock as a parameter (`clock`); loops that
survive failures and stop at once (`loops`).
Invariants: nothing happens at import; the environment is read in `settings` alone; no log line, span or metric holds a secret.
It is not: a framework. It builds no service, opens no connection to a database and knows no caller.
It imports `kit.errors` and no other room.
"""
