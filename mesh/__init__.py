"""The plan of the mesh: its services, the dependencies between them, and what is derived from both.

This package holds data and derivations alone: it starts, connects and renders nothing, and imports of a service only its manifest.
The local runner, the deployment, the edge and the services all read it.
"""
