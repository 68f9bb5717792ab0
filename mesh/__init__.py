"""The mesh's plan: which services there are, what each needs of the others, and what follows from that.

Data and derivations alone. Nothing here starts, connects or renders anything, and nothing imports a service's code besides its
manifest: the local runner, the deployment, the edge and the services themselves all read from here.
"""
