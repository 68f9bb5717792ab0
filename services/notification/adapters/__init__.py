"""What speaks to engines outside the mesh: the mail server."""
