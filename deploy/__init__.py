"""The mesh in containers, and the roles, databases and users of services in Postgres and Redis, locally and in containers.

`python -m deploy render` writes docker-compose.yml from the manifests. `keys` and `stores` are the two steps that compose runs
before the services, at every start. Both are idempotent: they add what is missing, also for a service that was added later.
"""
