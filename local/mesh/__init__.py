"""The components of the mesh on one machine, for the supervisor: servers, services and Envoy.

Each service gets its own database, role, Redis user, keys and ports, and no setting or secret of another service. Data and
secrets are created once and kept. This package prints nothing: the commands are in `local.terminal`.
"""
