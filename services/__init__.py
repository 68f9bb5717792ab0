"""The services of the mesh: each is its own process with its own data; they meet only through contracts and events."""
