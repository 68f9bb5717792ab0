"""Failures that a person at the terminal can act on."""

import errno
import os
from pathlib import Path


class LocalError(Exception):
    """One clear sentence: what is wrong and what to do. It is printed as it is, without a traceback."""

    exit_code = 1


class LocalSettingsError(LocalError):
    """A setting has no meaning, or a value that it cannot have."""

    exit_code = os.EX_CONFIG


class NotReady(Exception):
    """A probe's answer while a component does not serve yet; the message says why."""


class DidNotStart(Exception):
    """One attempt to start a component failed; the supervisor decides whether another follows.

    `hopeless` says that the component itself rules out that another attempt would end differently.
    """

    def __init__(self, reason: str, *, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.hopeless = hopeless


def of_os_error(error: OSError, path: Path) -> LocalError:
    """Turn a failed write below the state directory into a sentence: a full disk and a missing permission are common."""
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
