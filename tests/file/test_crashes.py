"""Workers are killed after every step of a check, and every file still has its one verdict."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import pytest
from storymesh.file.v1 import file_pb2

from local.harness import Servers
from services.file.model.object_keys import rendition_key
from services.file.model.purposes import RENDITIONS
from tests.file.conftest import FileWorld, Person
from tests.file.pictures import photo
from tests.file.working import object_key, stored, worker_settings
from tests.pipeline.failpoints import lines
from tests.waiting import until

NO_IMAGE = b"\xff\xd8\xff no image"


class Crashing:
    """Starts workers, one at a time, each with a folder for its trace."""

    def __init__(self, process: Process, folder: Path) -> None:
        assert process.stdin
        assert process.stdout
        self._process, self._input, self._output = process, process.stdin, process.stdout
        self._folder = folder
        self._started = 0

    def start(self, label: str = "") -> asyncio.Task[bytes]:
        """Start one that dies after its first step of the label. The task ends with it."""
        self._started += 1
        self.folder.mkdir()
        self._tell({"start": label, "folder": str(self.folder)})
        return asyncio.create_task(self._output.readline())

    @property
    def folder(self) -> Path:
        """The latest worker's."""
        return self._folder / str(self._started)

    async def kill(self, ended: asyncio.Task[bytes]) -> None:
        if not ended.done():
            self._tell({})
        assert await asyncio.wait_for(ended, 15) == b"-9\n"

    def children(self) -> list[psutil.Process]:
        return list(psutil.Process(self._process.pid).children(recursive=True))

    async def close(self) -> None:
        self._input.close()
        await self._process.wait()

    def _tell(self, message: dict[str, str]) -> None:
        self._input.write(json.dumps(message).encode() + b"\n")


@pytest.mark.timeout(240)
async def test_a_worker_that_is_killed_after_any_step_loses_no_file_and_leaves_nothing(
    world: FileWorld, servers: Servers, tmp_path: Path
) -> None:
    settings = worker_settings(world, lease_seconds=0.8)
    told = {
        **settings.model_dump(mode="json"),
        "database_url": settings.database_url.get_secret_value(),
        "s3_secret_key": settings.s3_secret_key.get_secret_value(),
        "redis_url": servers.redis_url,
        "mesh_key": "bW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW0=",
    }
    command = (sys.executable, "-m", "tests.file.crashing", json.dumps(told))
    crashing = Crashing(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE), tmp_path)
    person = world.person()
    images, refused = [await completed(person, photo())], [await completed(person, NO_IMAGE)]
    ended = crashing.start()
    await until(lambda: settled(person, images, refused), seconds=60)
    await until(lambda: only_renditions(world, images), seconds=30)
    await crashing.kill(ended)
    labels = list(dict.fromkeys(line.label for line in lines(crashing.folder)))
    of_files = [label for label in labels if "files" in label or label.startswith("S3 ")]
    assert len(of_files) >= 5, labels

    for label in labels:
        images.append(await completed(person, photo()))
        refused.append(await completed(person, NO_IMAGE))
        ended = crashing.start(label)
        if label in of_files:
            assert await asyncio.wait_for(ended, 60) == b"-9\n"
        else:
            # Such as the renewal of a lease, which need not come to pass.
            await until(partial(over, ended, person, images, refused), seconds=60)
            await crashing.kill(ended)

    ended = crashing.start()
    await until(lambda: settled(person, images, refused), seconds=60)
    await until(lambda: only_renditions(world, images), seconds=30)
    verdicts = Counter(event for event in await world.events() if event[0] != "FileUploaded")
    assert verdicts == {("FileReady", each): 1 for each in images} | {("FileRejected", each): 1 for each in refused}
    # An image process ends with its worker.
    processes = crashing.children()
    assert any("images.process" in " ".join(each.cmdline()) for each in processes)
    await crashing.kill(ended)
    await until(lambda: not any(each.is_running() for each in processes))
    await crashing.close()


async def completed(person: Person, data: bytes) -> str:
    purpose = file_pb2.FILE_PURPOSE_POST_PHOTO
    file_id = await person.uploaded(data, name="photo.jpg", media_type="image/jpeg", purpose=purpose)
    await person.complete(file_id)
    return file_id


async def over(ended: asyncio.Task[bytes], person: Person, images: list[str], refused: list[str]) -> bool:
    """Whether the worker has died, or has done all without dying."""
    return ended.done() or await settled(person, images, refused)


async def settled(person: Person, images: list[str], refused: list[str]) -> bool:
    states = [(await person.get(each)).state for each in (*images, *refused)]
    return states == [file_pb2.FILE_STATE_READY] * len(images) + [file_pb2.FILE_STATE_REJECTED] * len(refused)


async def only_renditions(world: FileWorld, images: list[str]) -> bool:
    keys = [await object_key(world, each) for each in images]
    return await stored(world) == {rendition_key(key, size) for key in keys for size in RENDITIONS}
