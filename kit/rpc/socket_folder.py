"""The folder of a server's own Unix socket, which does not outlive its process for long, however that ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

_PREFIX = "storymesh-socket-"
_SOCKET = "behind.sock"
_SOCKET_PATH_BYTES = 104
"""Of macOS; Linux takes 108 (unix(7)). Both count a byte of zero at the end."""


class SocketFolder:
    """A folder that only this user may enter, locked as long as the process lives.

    A killed process cannot remove its folder, but its lock goes with it. So each new folder's maker removes those without a lock.
    """

    def __init__(self) -> None:
        self._path, self._lock = _locked_folder()
        for other in _folders(self._path.parent):
            _remove_unlocked(other)

    @property
    def socket(self) -> str:
        """The path for the socket."""
        return str(self._path / _SOCKET)

    def remove(self) -> None:
        """Removes the folder with all that it holds."""
        shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _locked_folder() -> tuple[Path, int]:
    while True:
        path = _new_folder()
        with suppress(FileNotFoundError, BlockingIOError):
            return path, _lock(path)
        # Another process took it for one without an owner, in the moment between the making and the locking.


def _new_folder() -> Path:
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    if len(os.fsencode(os.path.join(folder, _SOCKET))) < _SOCKET_PATH_BYTES:
        return Path(folder)
    os.rmdir(folder)
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))  # made anew, for this user alone


def _lock(folder: Path) -> int:
    """Raises BlockingIOError when another process has it, FileNotFoundError when the folder is gone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder, follow_symlinks=False)):
            raise FileNotFoundError(folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _folders(parent: Path) -> Iterator[Path]:
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder.lstat().st_uid == os.getuid():
                yield folder


def _remove_unlocked(folder: Path) -> None:
    with suppress(OSError):
        descriptor = _lock(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
