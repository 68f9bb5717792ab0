"""The folder of a server's own Unix socket is removed with its server, and that of a killed process by the next."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.rpc.socket_folder import SocketFolder

_HOLDS_ONE = """
from kit.rpc.socket_folder import SocketFolder
folder = SocketFolder()
open(folder.socket, "w").close()
print(folder.socket, flush=True)
input()
"""


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, here and in processes that are started. Its path leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def another_process() -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a folder, and the path of its socket."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDS_ONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_that_of_a_living_one_is_kept(
    temporary: Path,
) -> None:
    killed, left = another_process()
    living, held = another_process()
    with killed, living:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.exists()
        with SocketFolder() as folder:
            assert {each.name for each in temporary.iterdir()} == {
                held.parent.name,
                Path(folder.socket).parent.name,
            }
        assert held.exists()
        living.communicate("\n")
    SocketFolder().remove()
    assert os.listdir(temporary) == []


def test_folders_of_other_kinds_are_left_alone(temporary: Path) -> None:
    (temporary / "storymesh-mesh").mkdir()
    (temporary / "elsewhere").mkdir()
    (temporary / "storymesh-socket-link").symlink_to(temporary / "elsewhere")
    SocketFolder().remove()
    assert {each.name for each in temporary.iterdir()} == {"storymesh-mesh", "elsewhere", "storymesh-socket-link"}


async def test_many_that_begin_at_once_keep_their_folders(temporary: Path) -> None:
    """Each looks through the folders of the others, between whose making and locking there is a moment."""
    folders = await asyncio.gather(*(asyncio.to_thread(SocketFolder) for _ in range(40)))
    assert all(Path(folder.socket).parent.is_dir() for folder in folders)
    for folder in folders:
        folder.remove()
    assert os.listdir(temporary) == []


def test_only_its_user_may_enter_it(temporary: Path) -> None:
    with SocketFolder() as folder:
        assert os.stat(Path(folder.socket).parent).st_mode & 0o077 == 0


def test_a_long_name_of_the_folder_for_temporary_files_is_no_hindrance(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a socket must be short (unix(7))."""
    deep = temporary / ("a-long-name-" * 10)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with SocketFolder() as folder:
        assert len(folder.socket) < 104
        assert Path(folder.socket).parent.is_dir()
    assert not Path(folder.socket).parent.exists()
    assert not any(deep.iterdir())
