"""Creates private folders in places that other users can write to, such as /tmp."""

import contextlib
import os
import stat
from pathlib import Path

from local.failures import LocalError


def own(path: Path, mode: int) -> None:
    """Create the folder, or reuse the one that this user created before.

    Raises LocalError when another user may have created what exists at `path` and so could replace its content,
    and OSError when it cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=mode)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise LocalError(f"{path} is not a folder that this user alone may write to: remove it.")
    path.chmod(mode)
