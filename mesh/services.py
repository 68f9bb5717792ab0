"""The services of the mesh. Each name is a folder of services/ with a manifest.py; nothing else lists them."""

SERVICES = (
    "auth",
    "story",
    "notification",
    "ratelimit",
    "ops",
    "social",
    "file",
)
