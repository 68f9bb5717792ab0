"""`python -m benchmarks.pipeline`: what a story costs on its way, beside the job queues that Python services use.

The whole mesh on real Postgres, Redis and Envoy. Story workers are processes of the benchmark's own, so that their lease, pace and
end are its to choose. Whoever asks, watches or feeds a queue runs in a process apart, on the same cores.
"""
