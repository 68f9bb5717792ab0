"""What speaks to engines outside the mesh: the models that write stories."""
