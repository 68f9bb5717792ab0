"""Failures that a person at the terminal can act on."""

import errno
import os
from pathlib import Path


class LocalError(Exception):
    """An expected failure: one sentence that says what is wrong and what to do, printed without a traceback."""

    exit_code = 1


class LocalSettingsError(LocalError):
    """A setting is unknown, or its value is invalid."""

    exit_code = os.EX_CONFIG


class NotReady(Exception):
    """Raised by a probe while a component does not serve yet; the message says why."""


class DidNotStart(Exception):
    """One attempt to start a component failed; the supervisor decides whether another follows.

    `hopeless` is True when another attempt would fail in the same way, so the supervisor makes none.
    """

    def __init__(self, reason: str, *, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.hopeless = hopeless


def of_os_error(error: OSError, path: Path) -> LocalError:
    """LocalError for a failed write below the state directory; a full disk and a missing permission are common."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LocalError(
            f"The disk that holds {path} is full: free some space, or move the mesh with STORYMESH_STATE_DIR."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return LocalError(
            f"{path} cannot be written ({error.strerror}): give this user the right to, "
            "or move the mesh with STORYMESH_STATE_DIR."
        )
    return LocalError(f"{path} cannot be used: {error.strerror or error}.")
