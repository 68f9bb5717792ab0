"""The whole mesh on one machine, without Docker: real servers from wheels, supervised.

`python -m local up` starts it, `python -m local --help` lists the rest. Tests bring up a mesh, or only its servers,
through `local.harness`. Three rooms, imported downwards only: `terminal`, `mesh`, `supervision`; all of them know the settings
and the layout of the state directory.
"""
