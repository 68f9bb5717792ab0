"""The benchmark of the story pipeline, run by `python -m benchmarks.pipeline`; the baselines are job queues for Python.

The whole mesh runs on real Postgres, Redis and Envoy. The benchmark starts the story workers itself, so that it can set their lease
and pace and kill them. Clients, watchers and producers of jobs run in separate processes on the same cores.
"""
