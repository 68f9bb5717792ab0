"""The mesh in containers, and what Postgres and Redis must know of each service wherever they run.

`python -m deploy render` writes docker-compose.yml from the manifests. `keys` and `stores` are the two steps that compose runs
before the services, at every start: both add what is missing, for a service that came later as for the first ones, and change
nothing that is there.
"""
