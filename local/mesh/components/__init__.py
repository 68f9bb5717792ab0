"""The components of the mesh, one module each; `local.mesh.assembly` puts them together."""
