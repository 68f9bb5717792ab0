"""The worker's side of the image processes: a few of them, of which each works on one image at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from asyncio import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from .messages import HEADER, READY, BadAnswer, ImageRefused, Refusal, Rendered, read_head

log = logging.getLogger(__name__)

_ROOT = Path(__file__).parents[4]
_START_SECONDS = 30.0
_ERROR_BYTES = 2000


@dataclass(frozen=True, slots=True)
class ImageBounds:
    """What one image may take, in an attempt, and how many attempts it has."""

    memory_bytes: int = 1 << 30
    """Of address space, which is more than what is used: 40 million pixels of a WebP with transparency take 0.7 GB."""
    cpu_seconds: int = 15
    seconds: float = 60.0
    attempts: int = 2
    """A process may also end by no fault of the image."""


class ImageProcessesUnavailable(Exception):
    """No image process can be started. No fault of the image: it has to be tried again."""


class _Ended(Exception):
    """The process has ended in the middle of an image."""


class _ImageProcess:
    """One process, and the children that it forks."""

    def __init__(self, process: subprocess.Process, bounds: ImageBounds) -> None:
        self._process = process
        self._bounds = bounds
        # They are pipes, as `start` asks for.
        self._input = cast(asyncio.StreamWriter, process.stdin)
        self._output = cast(asyncio.StreamReader, process.stdout)
        self._errors = cast(asyncio.StreamReader, process.stderr)

    @classmethod
    async def start(cls, bounds: ImageBounds) -> Self:
        """Returns when it is ready for an image. Raises ImageProcessesUnavailable."""
        arguments = (str(bounds.memory_bytes), str(bounds.cpu_seconds), str(bounds.seconds))
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-s", "-m", "services.file.adapters.images.process"),
                *arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=_ROOT,
                env={},  # The worker's holds its secrets.
                start_new_session=True,  # So that its children can be killed with it.
            )
        except OSError as error:
            raise ImageProcessesUnavailable(f"no image process can be started: {error}") from None
        started = cls(process, bounds)
        try:
            async with asyncio.timeout(_START_SECONDS):
                if await started._output.readline() != READY:
                    told = (await started._errors.read(_ERROR_BYTES)).decode(errors="replace")
                    raise ImageProcessesUnavailable(f"an image process ended at its start: {told.strip()}")
        except TimeoutError:
            await started.kill()
            raise ImageProcessesUnavailable(f"an image process was not ready after {_START_SECONDS:g} s") from None
        except BaseException:
            await started.kill()
            raise
        return started

    @property
    def lives(self) -> bool:
        return self._process.returncode is None

    async def render(self, data: bytes, *, square: bool) -> Rendered:
        """Raises ImageRefused; after any other error the process cannot be used any more."""
        async with asyncio.timeout(self._bounds.seconds):
            try:
                self._input.write(HEADER.pack(square, len(data)))
                self._input.write(data)
                await self._input.drain()
                line = await self._output.readline()
                if not line:
                    raise _Ended
                head = read_head(line)
                return head.rendered(await self._output.readexactly(head.length))
            except (ConnectionError, asyncio.IncompleteReadError):
                raise _Ended from None
            except ValueError:
                raise BadAnswer("a line without an end") from None

    async def kill(self) -> None:
        """Ends it with its children."""
        if self.lives:
            with suppress(ProcessLookupError):  # It ended by itself meanwhile.
                os.killpg(self._process.pid, signal.SIGKILL)
        self._input.close()
        await asyncio.shield(self._process.wait())


class ImagePool:
    """At most `processes` image processes. They are started when they are needed, and kept."""

    def __init__(self, *, processes: int, bounds: ImageBounds | None = None) -> None:
        self._bounds = bounds or ImageBounds()
        self._places = asyncio.Semaphore(processes)
        self._idle: list[_ImageProcess] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        idle, self._idle = self._idle, []
        for process in idle:
            await process.kill()

    async def render(self, data: bytes, *, square: bool) -> Rendered:
        """The renditions of SIZES. Raises ImageRefused, and ImageProcessesUnavailable."""
        async with self._places:
            for attempt in range(1, self._bounds.attempts + 1):
                process = await self._process()
                try:
                    rendered = await process.render(data, square=square)
                except ImageRefused:
                    self._idle.append(process)
                    raise
                except (TimeoutError, _Ended, BadAnswer) as error:
                    await process.kill()
                    log.warning(
                        "an image process was lost at attempt %d of an image: %s", attempt, type(error).__name__
                    )
                except BaseException:
                    await process.kill()
                    raise
                else:
                    self._idle.append(process)
                    return rendered
        raise ImageRefused(Refusal.TOO_COSTLY)

    async def _process(self) -> _ImageProcess:
        while self._idle:
            process = self._idle.pop()
            if process.lives:
                return process
            await process.kill()
        return await _ImageProcess.start(self._bounds)
