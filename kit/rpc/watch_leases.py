"""Leases for open watches: the rate limiter's bound on what a person has open holds over all replicas.

Each process bounds the watches by itself too (kit.rpc.watches). That is all there is while the limiter or its Redis is away:
watches are admitted then, because to refuse them all would do more harm than to admit a few too many.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from uuid import UUID, uuid4

from grpc.aio import Channel
from storymesh.ratelimit.v1 import descriptor_pb2
from storymesh.ratelimit.v1 import lease_service_pb2 as pb
from storymesh.ratelimit.v1.lease_service_pb2_grpc import LeaseServiceStub

from kit.errors import MeshError, ResourceExhausted
from mesh.edge_protocol import RATE_LIMIT_DOMAIN
from mesh.manifest import LIMITER

from .resources import Resources

log = logging.getLogger(__name__)

_ASK_SECONDS = 0.5
"""How long the beginning of a watch waits for the limiter."""

_PAUSE_SECONDS = 5.0
"""The limiter is not asked for so long after it did not answer: else each watch would wait for it in turn."""

_BACKGROUND_SECONDS = 3.0
"""How long renewals and releases wait for the limiter."""

_GATHER_SECONDS = 0.05
"""Releases are gathered for so long, because after a drain or a lost connection many come at once."""

_LOOK_SECONDS = 1.0
"""The longest pause between two looks for leases that are due."""

_MOST_OF_A_CALL = 500


class PlacesTaken(Exception):
    """The person has as many watches open as the limiter's rule allows."""


@dataclass(slots=True)
class _Held:
    lease: pb.Lease
    seconds: float
    """How long the lease lasts."""
    due_at: float
    """When it is to be renewed: a third of its time before anything is lost."""


class WatchLeases:
    """Acquires a lease for each watch of a process, renews it while the watch is open, and releases it after."""

    def __init__(self, channel: Channel, watch: str, *, clock: Callable[[], float] = monotonic) -> None:
        """`watch` names what is watched, as the value of the rules' key `watch`."""
        self._stub = LeaseServiceStub(channel)
        self._watch = watch
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._ended: list[pb.Lease] = []
        self._asking: set[asyncio.Task[pb.AcquireLeaseResponse]] = set()
        self._wake = asyncio.Event()
        self._quiet_until = float("-inf")

    async def acquire(self, user_id: UUID) -> str | None:
        """Return the key of the lease, or None if the watch is not counted. Raises PlacesTaken."""
        if self._clock() < self._quiet_until:
            return None
        lease = self._lease(user_id)
        asking = asyncio.create_task(self._ask(lease))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        try:
            granted = await asyncio.shield(asking)
        except ResourceExhausted:
            raise PlacesTaken from None
        except MeshError as error:
            log.warning("watches are bounded by this process alone, because the limiter does not answer: %s", error)
            self._quiet_until = self._clock() + _PAUSE_SECONDS
            self._end(lease)
            return None
        except asyncio.CancelledError:
            # The client has left, and the lease may be granted. Its release waits for the answer: one that overtook the question
            # would leave the place to nobody.
            asking.add_done_callback(lambda answered: self._end_unless_refused(lease, answered))
            raise
        if not granted.counted:
            return None
        self._hold(lease, granted)
        return lease.key

    async def _ask(self, lease: pb.Lease) -> pb.AcquireLeaseResponse:
        request = pb.AcquireLeaseRequest(lease=lease)
        granted: pb.AcquireLeaseResponse = await self._stub.AcquireLease(request, timeout=_ASK_SECONDS)
        return granted

    def _end_unless_refused(self, lease: pb.Lease, answered: asyncio.Task[pb.AcquireLeaseResponse]) -> None:
        if answered.cancelled() or not isinstance(answered.exception(), ResourceExhausted):
            self._end(lease)

    def release(self, key: str) -> None:
        """End a lease soon; `run` tells the limiter."""
        if held := self._held.pop(key, None):
            self._end(held.lease)

    async def run(self, stopping: asyncio.Event) -> None:
        """Renew and release leases. Once `stopping` is set, go on until all watches have ended: they are opened again elsewhere."""
        while not stopping.is_set() or self._held or self._ended or self._asking:
            try:
                async with asyncio.timeout(_GATHER_SECONDS if stopping.is_set() else _LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(_GATHER_SECONDS)
            self._wake.clear()
            await self.release_ended()
            await self.renew_due()

    async def release_ended(self) -> None:
        """Release what has ended. What the limiter is not told ends by itself."""
        while self._ended:
            ended, self._ended = self._ended[:_MOST_OF_A_CALL], self._ended[_MOST_OF_A_CALL:]
            try:
                await self._stub.ReleaseLeases(pb.ReleaseLeasesRequest(leases=ended), timeout=_BACKGROUND_SECONDS)
            except MeshError as error:
                log.warning("%d watches that have ended count until their leases end: %s", len(ended), error)

    async def renew_due(self) -> None:
        """Renew the leases that have lasted for a third of their time."""
        now = self._clock()
        due = [held for held in self._held.values() if held.due_at <= now]
        for begin in range(0, len(due), _MOST_OF_A_CALL):
            await self._renew(due[begin : begin + _MOST_OF_A_CALL])

    async def _renew(self, due: Sequence[_Held]) -> None:
        request = pb.RenewLeasesRequest(leases=[held.lease for held in due])
        try:
            renewals = (await self._stub.RenewLeases(request, timeout=_BACKGROUND_SECONDS)).renewals
        except MeshError as error:
            log.warning("the leases of %d watches cannot be renewed now: %s", len(due), error)
            for held in due:
                held.due_at = self._clock() + min(held.seconds / 10, _PAUSE_SECONDS)
            return
        for held, renewal in zip(due, renewals, strict=True):
            held.due_at = self._clock() + held.seconds / 3
            if renewal.lost and held.lease.key in self._held:
                await self._acquire_again(held)

    async def _acquire_again(self, held: _Held) -> None:
        """Count a watch again whose lease was lost, as with Redis. If there is no place any more, it goes on uncounted."""
        try:
            granted = await self._stub.AcquireLease(
                pb.AcquireLeaseRequest(lease=held.lease), timeout=_BACKGROUND_SECONDS
            )
        except ResourceExhausted:
            self._held.pop(held.lease.key, None)
        except MeshError as error:
            log.warning("a watch whose lease was lost cannot be counted now: %s", error)
        else:
            if held.lease.key not in self._held:
                # The watch has ended meanwhile, maybe after its release was sent.
                self._end(held.lease)
            elif not granted.counted:
                del self._held[held.lease.key]

    def _hold(self, lease: pb.Lease, granted: pb.AcquireLeaseResponse) -> None:
        seconds = granted.ttl.ToTimedelta().total_seconds()
        self._held[lease.key] = _Held(lease, seconds, self._clock() + seconds / 3)

    def _end(self, lease: pb.Lease) -> None:
        self._ended.append(lease)
        self._wake.set()

    def _lease(self, user_id: UUID) -> pb.Lease:
        entry = descriptor_pb2.DescriptorEntry
        entries = [entry(key="watch", value=self._watch), entry(key="user", value=str(user_id))]
        descriptor = descriptor_pb2.Descriptor(entries=entries)
        return pb.Lease(domain=RATE_LIMIT_DOMAIN, descriptors=[descriptor], key=str(uuid4()))


def watch_leases(resources: Resources, target: str, watch: str) -> WatchLeases | None:
    """The leases of watches, if there is a limiter to ask."""
    return WatchLeases(resources.channel(LIMITER), watch) if target else None
