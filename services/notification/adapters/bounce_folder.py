"""A folder into which a mail server puts returned mails: a maildir, or any folder of `*.eml` files. Blocks: call it in a thread."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_SETTLED_SECONDS = 1.0
"""Age from which an `*.eml` file counts as written to its end. A maildir needs none: its files appear whole (maildir(5))."""

_ASIDE = "not-bounces"


class BounceFolder:
    """Hands out files oldest first. Several workers may read one folder: a file that is gone was dealt with by another."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def waiting(self, limit: int) -> Sequence[Path]:
        """Files to read. Raises OSError if the folder cannot be read."""
        new = self._path / "new"
        is_maildir = new.is_dir()
        found = []
        with os.scandir(new if is_maildir else self._path) as entries:
            for entry in entries:
                if not is_maildir and not entry.name.endswith(".eml"):
                    continue
                with suppress(FileNotFoundError):
                    told = entry.stat(follow_symlinks=False)
                    settled = is_maildir or time.time() - told.st_mtime >= _SETTLED_SECONDS
                    # Neither links, which lead anywhere, nor pipes, which are never read to their end.
                    if stat.S_ISREG(told.st_mode) and settled:
                        found.append((told.st_mtime, entry.path))
        return [Path(path) for _, path in sorted(found)[:limit]]

    @staticmethod
    def read(path: Path, most_bytes: int) -> bytes | None:
        """The beginning of a file; None if another worker has dealt with it."""
        try:
            with path.open("rb") as file:
                return file.read(most_bytes)
        except FileNotFoundError:
            return None

    @staticmethod
    def remove(path: Path) -> None:
        """Delete what was dealt with: a returned mail holds the person's address and the letter."""
        path.unlink(missing_ok=True)

    @staticmethod
    def put_aside(path: Path) -> None:
        """Move what is no bounce to where people look: `cur` of a maildir, marked as seen; else the sub-folder `not-bounces`."""
        aside = path.parent.parent / "cur" if path.parent.name == "new" else path.parent / _ASIDE
        aside.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            path.rename(aside / (f"{path.name}:2,S" if aside.name == "cur" else path.name))
