"""The whole mesh on one machine, without Docker: real servers from wheels, supervised.

`python -m local up` starts it, `python -m local --help` lists the rest. Tests bring up a mesh, or only its servers,
through `local.harness`. Three rooms, of which each imports only those after it: `terminal`, `mesh`,
`supervision`. All three import the settings and the layout of the state directory.
"""
