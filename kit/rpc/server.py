"""One process of the mesh: its gRPC server, its background tasks and its orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2_grpc
from opentelemetry.instrumentation.grpc import aio_server_interceptor, filters

from kit.identity.access import AccessControl
from kit.identity.tokens import AccessTokens, ServiceTokens
from kit.runtime.health import CHECK_SECONDS, EVERY_SECONDS, Check, Health
from kit.runtime.metrics import Metrics
from kit.runtime.settings import ServiceSettings

from . import reflection
from .batches import Batch, BatchHandler, BatchServicer
from .interceptor import LoadCheck, MeshInterceptor, Refuse
from .limits import MESSAGE_BYTES, METADATA_BYTES

log = logging.getLogger(__name__)

S = TypeVar("S")

AddToServer = Callable[[S, grpc.aio.Server], None]
"""A generated `add_<Service>Servicer_to_server`."""

Background = Callable[[asyncio.Event], Awaitable[None]]
"""A task that runs until the event is set, and ends by itself soon after."""

_HEALTH = "grpc.health.v1.Health"


class Server:
    """Serves until SIGTERM or SIGINT, then drains.

    Readiness fails first; then open calls and background work end within the budget.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        required: Mapping[str, Check],
        optional: Mapping[str, Check] | None = None,
        check_every_seconds: float = EVERY_SECONDS,
        check_seconds: float = CHECK_SECONDS,
        message_bytes: int = MESSAGE_BYTES,
    ) -> None:
        self._settings = settings
        self._required = required
        self._optional = optional or {}
        self._check_every_seconds = check_every_seconds
        self._check_seconds = check_seconds
        self._message_bytes = message_bytes
        self._servicers: dict[str, Callable[[grpc.aio.Server], None]] = {}
        self._foreign: dict[str, Callable[[grpc.aio.Server], None]] = {}
        self._traced: list[str] = []
        self._batches: dict[str, Batch] = {}
        self._load_checks: dict[str, LoadCheck] = {}
        self._background: list[Background] = []
        self.metrics = Metrics()
        """Read at STORYMESH_METRICS_LISTEN while the server runs."""
        self.stopping = asyncio.Event()
        """Set when the drain begins; open streams end themselves then."""
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Host and port, once calls are answered; tells the port that port 0 became."""

    def add(self, add_to_server: AddToServer[S], servicer: S) -> None:
        """A service of ours, whose methods carry policies."""
        self._servicers[_full_name(add_to_server, servicer)] = partial(add_to_server, servicer)

    def add_foreign(self, add_to_server: AddToServer[S], servicer: S, *, traced: bool = True) -> None:
        """A foreign contract without policies (Envoy's), to be reached on an internal network only.

        Not to be traced are streams without an end: their span would have none. A traced stream has to be a generator.
        """
        name = _full_name(add_to_server, servicer)
        self._foreign[name] = partial(add_to_server, servicer)
        if traced:
            self._traced.append(name)

    def add_batched(self, service: str, method: str, handler: BatchHandler, *, most: int = 256) -> None:
        """A method of a foreign contract whose calls are answered together, at most so many at once.

        Around the handler there is nothing but a span: no access, no validation, no request log. It decodes, and answers bytes.
        """
        path = f"/{service}/{method}"
        self._batches[path] = Batch(path, handler, most)

    def add_load_check(self, method: str, check: LoadCheck) -> None:
        """Ask before each call of a method of ours with one answer, such as `/storymesh.auth.v1.SessionService/CreateSession`.

        A call that it refuses is logged and counted, and costs nothing else: its message is not read and no token verified. So a
        flood of calls that would find no place leaves the event loop to others.
        """
        self._load_checks[method] = check

    def background(self, task: Background) -> None:
        """Runs beside the server. When it raises, the whole process ends, for a supervisor to restart."""
        self._background.append(task)

    async def run(
        self,
        access_tokens: AccessTokens | None = None,
        service_tokens: ServiceTokens | None = None,
    ) -> None:
        """Raises OSError when an address is taken, ValueError when a service of ours has no tokens to know its callers by."""
        server, health = self._build(access_tokens, service_tokens)
        async with self.metrics.exposed(self._settings.metrics_listen):
            await self._serve(server, health)

    async def _serve(self, server: grpc.aio.Server, health: Health) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        # At once, for the first check of health may wait for what one of them brings.
        tasks = [asyncio.ensure_future(task(self.stopping)) for task in self._background]
        answer = asyncio.create_task(self._answer(server, health))
        stop = asyncio.create_task(self.stopping.wait())
        try:
            done, _ = await asyncio.wait([answer, stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.stopping.set()
            log.info("draining")
            answer.cancel()
            await health.leave()
            # A closed port would lose the calls of those who do not know yet, or have them tried again.
            known = min(health.known_after_seconds, self._settings.drain_seconds)
            await asyncio.sleep(known)
            left = self._settings.drain_seconds - known
            await asyncio.gather(server.stop(left), _finish(tasks, left))
            log.info("stopped")

    async def _answer(self, server: grpc.aio.Server, health: Health) -> None:
        """Checked once before the first call, so that no probe finds a server ready that is not."""
        await health.check()
        await server.start()
        self.address.set_result(f"{self._settings.listen.rpartition(':')[0]}:{self._port}")
        log.info("serving on %s", self.address.result())
        # gRPC's server ends by itself over a path that is not UTF-8. The process ends with it, for a supervisor to restart.
        ended = asyncio.create_task(server.wait_for_termination())
        watch = asyncio.create_task(health.watch(self.stopping))
        try:
            await asyncio.wait([ended, watch], return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise RuntimeError("gRPC's server has ended by itself")
            watch.result()
        finally:
            # Cancelled, the other would take along what the server itself waits for when it is stopped.
            watch.cancel()

    def _build(
        self, access_tokens: AccessTokens | None, service_tokens: ServiceTokens | None
    ) -> tuple[grpc.aio.Server, Health]:
        interceptors: list[grpc.aio.ServerInterceptor] = []
        refuse: Refuse | None = None
        if self._traced:
            # Only these: our own services' calls are traced by the interceptor below, and probes would drown the rest.
            traced = filters.any_of(*[filters.service_name(name) for name in self._traced])
            interceptors.append(aio_server_interceptor(filter_=traced))  # type: ignore[no-untyped-call]
        if self._servicers:
            if access_tokens is None or service_tokens is None:
                raise ValueError("a server with servicers needs both kinds of tokens")
            access = AccessControl(self._servicers, access_tokens, service_tokens)
            served = frozenset(self._servicers)
            call_seconds, write_seconds = self._settings.call_seconds, self._settings.write_seconds
            around = MeshInterceptor(
                served,
                access,
                self.metrics,
                call_seconds=call_seconds,
                write_seconds=write_seconds,
                load_checks=self._load_checks,
            )
            interceptors.append(around)
            refuse = around.refuse
        server = self._transport(interceptors, refuse)
        for add_to_server in (*self._servicers.values(), *self._foreign.values()):
            add_to_server(server)
        batched = {path.split("/")[1] for path in self._batches}
        everything = sorted({*self._servicers, *self._foreign, *batched})
        health = Health(
            everything,
            self._required,
            self._optional,
            every_seconds=self._check_every_seconds,
            check_seconds=self._check_seconds,
        )
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
        reflection.add(server, (*everything, _HEALTH))
        try:
            self._port = server.add_insecure_port(self._settings.listen)
        except RuntimeError:
            raise OSError(
                f"{self._settings.listen} cannot be listened on, probably because another process does; "
                "end that process or set STORYMESH_LISTEN"
            ) from None
        return server, health

    def _transport(self, interceptors: Sequence[grpc.aio.ServerInterceptor], refuse: Refuse | None) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=interceptors,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self._message_bytes),
                ("grpc.max_metadata_size", METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", METADATA_BYTES),
                ("grpc.keepalive_permit_without_calls", 1),
                # The edge and our own channels ping each second, to miss a process that stands still; gRPC would hang up on them.
                ("grpc.http2.max_ping_strikes", 0),
            ],
        )
        if self._settings.grpc_server == "native":
            try:
                from .native import NativeServer
            except ImportError:
                log.warning(
                    "pygrpc-native is not installed, as it has no wheel for every platform: grpcio serves instead"
                )
            else:
                native = NativeServer(server, interceptors=interceptors, refuse=refuse)
                return NativeServer(native, batches=self._batches) if self._batches else native
        for batch in self._batches.values():
            BatchServicer(batch).add_to(server)
        return server


class _Registrations:
    """Takes the place of a server, to learn which service a generated function adds."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self.names.update(each.service_name() for each in handlers if isinstance(each, grpc.ServiceRpcHandler))

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        self.names.add(service)


def _full_name(add_to_server: AddToServer[S], servicer: S) -> str:
    registrations = _Registrations()
    add_to_server(servicer, registrations)  # type: ignore[arg-type]  # has all that the generated functions use
    (name,) = registrations.names
    return name


async def _finish(tasks: Sequence[asyncio.Future[None]], seconds: float) -> None:
    """Lets the tasks end by themselves, then cancels the rest."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
