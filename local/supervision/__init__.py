"""Processes under supervision: start in order of need, probe, restart with growing pauses, stop in reverse order.

Promises: a component is started only when all it needs is healthy; one that ended is started again; no process outlives its
supervisor unnoticed, because the state file names each by pid and start time. One supervisor owns a state directory, by a file
lock. Knows no component of the mesh: those come from `local.mesh`.
"""
