"""The process supervisor: starts components in dependency order, probes them, restarts them with backoff, stops them in reverse.

A component is started only when all its dependencies are healthy, and again when its process ends. A process that outlives its
supervisor is found again, because the state file names each by pid and start time. A file lock allows one supervisor per state
directory. This package knows no component of the mesh: those come from `local.mesh`.
"""
