"""Keys that the worker and the API of a test share."""

SEAL_KEY = b"s" * 32
UNSUBSCRIBE_KEY = "dXV1dXV1dXV1dXV1dXV1dXV1dXV1dXV1dXV1dXV1dXU="
ADDRESS_KEY = b"a" * 32
CURSOR_KEY = b"k" * 32
SENDER = "Storymesh <no-reply@mail.example>"
