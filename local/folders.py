"""Folders in places that other users may write to as well, such as /tmp."""

import contextlib
import os
import stat
from pathlib import Path

from local.failures import LocalError


def own(path: Path, mode: int) -> None:
    """Make the folder, or take the one that this user made before.

    Raises LocalError when somebody else may have put there what stands at `path`, and so could exchange what is in it,
    and OSError when it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=mode)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise LocalError(f"{path} is not a folder that this user alone may write to: remove it.")
    path.chmod(mode)
