"""What this mesh consists of on one machine: servers, services and Envoy as components for the supervisor.

Promises: each service gets its own database, role, Redis user, keys and ports, and no setting or secret of another; what was
made once is kept. Prints nothing: the commands are in `local.terminal`.
"""
