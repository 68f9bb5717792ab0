"""The group `files` of the command: uploads, downloads, lists and deletes files of the person who is signed in."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TextIO

from storymesh.file.v1 import file_pb2
from storymesh.file.v1 import file_service_pb2 as pb

from . import printing
from .client import Storymesh
from .downloads import safe_name
from .errors import TransferFailed

_PAGE_SIZE = 100
_SIZES = (96, 512, 1600)
_PURPOSES = tuple(
    name.removeprefix("FILE_PURPOSE_").lower().replace("_", "-")
    for name, number in file_pb2.FilePurpose.items()
    if number
)
_BAR_CHARACTERS = 30
_SHOWN_EVERY_SECONDS = 0.1


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    place: argparse.ArgumentParser,
    listing: argparse.ArgumentParser,
) -> None:
    """Adds the group's commands, each with the options of both parents that concern it."""
    put = _add(commands, "put", "Upload a file, and wait until it is checked", place)
    put.add_argument("path", type=Path, metavar="PATH", help="the file")
    put.add_argument(
        "--resume", action="store_true", help="go on with an upload of this file that was interrupted, if there is one"
    )
    put.add_argument("--purpose", choices=_PURPOSES, default="document", help="what it is for (%(default)s)")
    put.add_argument("--name", default="", help="its name in the mesh (that of the file)")
    put.add_argument("--type", default="", metavar="TYPE", help="its media type (by the ending of its name)")
    put.add_argument("--no-wait", action="store_true", help="do not wait until it is checked")
    get = _add(commands, "get", "Download a file; an interrupted download goes on", place)
    get.add_argument("file_id", metavar="ID", help="from the list")
    get.add_argument("path", type=Path, nargs="?", metavar="PATH", help="a file or a folder (the file's name, here)")
    get.add_argument(
        "--size", type=int, choices=_SIZES, default=0, help="of an image: pixels of its longest side (the largest)"
    )
    get.add_argument("--force", action="store_true", help="replace what has that name here")
    _add(commands, "list", "List the files, newest first", place, listing)
    remove = _add(commands, "rm", "Delete files", place)
    remove.add_argument("file_ids", nargs="+", metavar="ID", help="from the list")


async def run(mesh: Storymesh, options: argparse.Namespace) -> None:
    """Runs one of them and prints its answer. Raises StorymeshError and TransferFailed."""
    match options.verb:
        case "put":
            print(await _put(mesh, options))
        case "get":
            print(await _get(mesh, options))
        case "list":
            print(_listed(await _all(mesh), as_json=options.json))
        case "rm":
            for file_id in options.file_ids:
                await mesh.files.DeleteFile(pb.DeleteFileRequest(file_id=file_id))
                print(f"Deleted {file_id}.")


async def _put(mesh: Storymesh, options: argparse.Namespace) -> str:
    with Bar(sys.stderr) as bar:
        try:
            file = await mesh.upload(
                options.path,
                purpose=options.purpose.replace("-", "_"),
                name=options.name or None,
                media_type=options.type or None,
                resume=options.resume,
                wait=not options.no_wait,
                progress=bar.show,
            )
        except OSError as error:
            raise TransferFailed(f"{options.path} cannot be read: {error.strerror}.") from None
        except TransferFailed as failure:
            if failure.may_resume:
                raise TransferFailed(f"{failure} Go on with --resume.", may_resume=True) from None
            raise
    if file.state in (file_pb2.FILE_STATE_REJECTED, file_pb2.FILE_STATE_EXPIRED):
        raise TransferFailed(f"The file was not taken: {printing.plain(file.reason)}.")
    return f"{file.id}  {_state(file)}"


async def _get(mesh: Storymesh, options: argparse.Namespace) -> str:
    file = (await mesh.files.GetFile(pb.GetFileRequest(file_id=options.file_id))).file
    path = _destination(options.path or Path(), safe_name(file.name, file.id))
    if _exists(path) and not options.force:
        raise TransferFailed(f"{path} exists; replace it with --force, or name another path.")
    with Bar(sys.stderr) as bar:
        try:
            await mesh.download(options.file_id, path, target=options.size, progress=bar.show)
        except OSError as error:
            raise TransferFailed(f"{path} cannot be written: {error.strerror}.") from None
    return printing.plain(str(path))


def _destination(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


async def _all(mesh: Storymesh) -> list[file_pb2.File]:
    found: list[file_pb2.File] = []
    request = pb.ListFilesRequest(page_size=_PAGE_SIZE)
    while True:
        page = await mesh.files.ListFiles(request)
        found += page.files
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def _listed(files: list[file_pb2.File], *, as_json: bool) -> str:
    if as_json:
        return printing.list_as_json("files", files)
    rows = [
        (
            each.id,
            printing.time(each.create_time),
            f"{each.size:,}",
            _state(each) + (f" ({each.reason})" if each.reason else ""),
            each.media_type,
            each.name,
        )
        for each in files
    ]
    return printing.table(("id", "created", "bytes", "state", "type", "name"), rows)


def _state(file: file_pb2.File) -> str:
    return file_pb2.FileState.Name(file.state).removeprefix("FILE_STATE_").lower()


class Bar:
    """A line that shows how far a transfer is. Silent unless both outputs are a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out if out.isatty() and sys.stdout.isatty() else None
        self._began = time.monotonic()
        self._first: int | None = None
        self._shown = 0.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._out and self._shown:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def show(self, done: int, size: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if not self._out or (done < size and now - self._shown < _SHOWN_EVERY_SECONDS):
            return
        self._shown = now
        full = _BAR_CHARACTERS * done // max(size, 1)
        rate = (done - self._first) / max(now - self._began, 0.001)
        # A terminal that does not know its width says 0.
        width = os.get_terminal_size(self._out.fileno()).columns or _BAR_CHARACTERS * 2
        line = f"{'#' * full}{'.' * (_BAR_CHARACTERS - full)} {100 * done // max(size, 1):3}%  {rate / 1e6:.1f} MB/s"
        self._out.write(f"\r\x1b[K{line[: width - 1]}")
        self._out.flush()


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    description: str,
    *parents: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=description, description=f"{description}.", parents=list(parents))
