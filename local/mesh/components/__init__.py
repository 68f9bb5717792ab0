"""The parts of the mesh, one module each. `mesh` puts them together."""
