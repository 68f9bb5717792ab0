"""What speaks to an engine outside the mesh: the image library in its own processes, and the virus scanner."""
