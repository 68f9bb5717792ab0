"""What a call of the object store can end with, apart from kit.data.objects, which loads the S3 client."""

from __future__ import annotations

OBJECT_STORE = "object_store"


class ObjectStoreUnavailable(ConnectionError):
    """The store is away, is too slow, fails (5xx), or refuses us altogether: its bucket is gone or our key is not its key.

    The same call may succeed later; callers of ours are told UNAVAILABLE.
    """

    dependency = OBJECT_STORE


class ObjectMissing(LookupError):
    """There is no such object or upload."""


class ObjectRefused(Exception):
    """The store answers, and will not do it; `code` is S3's, such as `InvalidPart` or `PreconditionFailed`."""

    def __init__(self, code: str) -> None:
        super().__init__(f"the object store refuses: {code}")
        self.code = code
