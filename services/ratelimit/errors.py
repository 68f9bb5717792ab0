"""The errors of this service. Their reasons are permanent."""

from __future__ import annotations

from kit.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from mesh.edge_protocol import RATE_LIMIT_UNSATISFIABLE


class BucketsUnreachable(Unavailable):
    reason = "RATE_LIMIT_BUCKETS_UNREACHABLE"
    message = "the rate limit cannot be checked now, and its rule lets nothing pass unchecked; try again"


class RateLimited(ResourceExhausted):
    """A rule has no place free, or its bucket holds too little now; the metadata name the rule."""

    reason = "RATE_LIMITED"
    message = "the limit is reached; try again later"


class Unsatisfiable(ResourceExhausted):
    reason = RATE_LIMIT_UNSATISFIABLE
    message = "the limit never allows as much"


class ReservationKeyReused(AlreadyExists):
    reason = "RESERVATION_KEY_REUSED"
    message = "this key came with another request before; choose a new one"


class ReservationSettled(FailedPrecondition):
    reason = "RESERVATION_SETTLED"
    message = "the reservation has ended already"


class ReservationNotFound(NotFound):
    reason = "RESERVATION_NOT_FOUND"
    message = "there is no such reservation, or it has expired"


class OverridesFull(FailedPrecondition):
    reason = "RATE_LIMIT_OVERRIDES_FULL"
    message = "as many grants and bans are in force as there may be; lift some, or write rules"


class BanOfOneself(FailedPrecondition):
    reason = "RATE_LIMIT_BAN_OF_ONESELF"
    message = "this would ban the administrator who asks for it"


class OverrideNotFound(NotFound):
    reason = "RATE_LIMIT_OVERRIDE_NOT_FOUND"
    message = "no grant or ban of this id is in force"


class TooManyEdges(ResourceExhausted):
    reason = "RATE_LIMIT_TOO_MANY_EDGES"
    message = "too many Envoys are connected to this limiter; connect to another one"


class RecordingNotFound(NotFound):
    reason = "RATE_LIMIT_RECORDING_NOT_FOUND"
    message = "no calls are recorded"
