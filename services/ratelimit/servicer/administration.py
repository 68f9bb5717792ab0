"""storymesh.ops.v1.RateLimitService: what administrators see of the limiter and change in it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import ServicerContext
from storymesh.ops.v1 import rate_limit_pb2 as messages
from storymesh.ops.v1 import rate_limit_service_pb2 as pb
from storymesh.ops.v1.rate_limit_service_pb2_grpc import RateLimitServiceServicer

from kit.identity.caller import caller_of
from kit.rpc.timestamps import set_time
from mesh.edge_protocol import RATE_LIMIT_BANNED, RATE_LIMIT_UNSATISFIABLE

from ..model.administration import (
    Act,
    ExplainedCall,
    ExplainedDescriptor,
    ExplainedRule,
    Level,
    RecordedChange,
    Recording,
)
from ..model.matching import Entries
from ..model.overrides import Override, OverrideKind
from ..model.rules import LeaseRule, Rule
from ..operations import Operations
from ..operations.explaining import limit_of
from ..operations.subjects import Subject

Context = ServicerContext[Any, Any]

_ACTS: Mapping[Act, messages.RateLimitAct.ValueType] = {
    Act.RESET: messages.RATE_LIMIT_ACT_RESET,
    Act.GRANTED: messages.RATE_LIMIT_ACT_GRANTED,
    Act.BANNED: messages.RATE_LIMIT_ACT_BANNED,
    Act.LIFTED: messages.RATE_LIMIT_ACT_LIFTED,
    Act.RECORDING_STARTED: messages.RATE_LIMIT_ACT_RECORDING_STARTED,
    Act.RECORDING_STOPPED: messages.RATE_LIMIT_ACT_RECORDING_STOPPED,
}

_KINDS: Mapping[OverrideKind, messages.RateLimitOverrideKind.ValueType] = {
    OverrideKind.GRANT: messages.RATE_LIMIT_OVERRIDE_KIND_GRANT,
    OverrideKind.BAN: messages.RATE_LIMIT_OVERRIDE_KIND_BAN,
}

_MOST_DIFFERENCES = 20

_LIMITED = "RATE_LIMITED"
"""The reason that the edge gives where a wait helps."""


class RateLimitServicer(RateLimitServiceServicer):
    """Protobuf in, protobuf out."""

    def __init__(self, operations: Operations) -> None:
        self._inspection = operations.inspection
        self._listing = operations.listing
        self._overrides = operations.overrides
        self._recordings = operations.recordings

    async def ExplainRateLimit(
        self, request: pb.ExplainRateLimitRequest, context: Context
    ) -> pb.ExplainRateLimitResponse:
        calls = await self._inspection.explain(_subject(request.subject))
        return pb.ExplainRateLimitResponse(calls=map(_call, calls))

    async def InspectRateLimit(
        self, request: pb.InspectRateLimitRequest, context: Context
    ) -> pb.InspectRateLimitResponse:
        levels = await self._inspection.inspect(_subject(request.subject))
        return pb.InspectRateLimitResponse(buckets=map(_bucket, levels))

    async def ResetRateLimit(self, request: pb.ResetRateLimitRequest, context: Context) -> pb.ResetRateLimitResponse:
        administrator = caller_of(context).user_id
        count = await self._inspection.reset(administrator, _subject(request.subject), request.rule, request.reason)
        return pb.ResetRateLimitResponse(reset_count=count)

    async def GrantRateLimit(self, request: pb.GrantRateLimitRequest, context: Context) -> pb.GrantRateLimitResponse:
        override = await self._overrides.grant(
            caller_of(context).user_id,
            _subject(request.subject),
            request.expire_time.ToDatetime(UTC),
            request.reason,
            unlimited=request.unlimited,
            rate=request.rate,
            burst=request.burst,
        )
        return pb.GrantRateLimitResponse(override=_override(override))

    async def BanCaller(self, request: pb.BanCallerRequest, context: Context) -> pb.BanCallerResponse:
        subject, ends_at = _subject(request.subject), request.expire_time.ToDatetime(UTC)
        override = await self._overrides.ban(caller_of(context).user_id, subject, ends_at, request.reason)
        return pb.BanCallerResponse(override=_override(override))

    async def ListRateLimitOverrides(
        self, request: pb.ListRateLimitOverridesRequest, context: Context
    ) -> pb.ListRateLimitOverridesResponse:
        page = await self._listing.overrides(request.page_size, request.page_token)
        return pb.ListRateLimitOverridesResponse(overrides=map(_override, page.items), next_page_token=page.next_token)

    async def LiftRateLimitOverride(
        self, request: pb.LiftRateLimitOverrideRequest, context: Context
    ) -> pb.LiftRateLimitOverrideResponse:
        administrator, override_id = caller_of(context).user_id, UUID(request.override_id)
        lifted = await self._overrides.lift(administrator, override_id, request.reason)
        return pb.LiftRateLimitOverrideResponse(override=_override(lifted))

    async def ListRateLimitRules(
        self, request: pb.ListRateLimitRulesRequest, context: Context
    ) -> pb.ListRateLimitRulesResponse:
        page = self._listing.rules(request.page_size, request.page_token)
        shadow = {each.domain for each in page.loaded.rules.domains if each.shadow}
        response = pb.ListRateLimitRulesResponse(
            rules=[_rule(rule, shadow=rule.domain in shadow) for rule in page.rules],
            next_page_token=page.next_token,
            source=str(page.loaded.source),
            digest=page.loaded.digest,
            fault=page.loaded.fault,
        )
        set_time(response.load_time, page.loaded.loaded_at)
        set_time(response.fault_time, page.loaded.faulted_at)
        return response

    async def ListRateLimitOffenders(
        self, request: pb.ListRateLimitOffendersRequest, context: Context
    ) -> pb.ListRateLimitOffendersResponse:
        page = await self._listing.offenders(request.minutes, request.page_size, request.page_token)
        return pb.ListRateLimitOffendersResponse(
            offenders=[
                messages.RateLimitOffender(
                    domain=each.domain, rule=each.rule, entries=_entries(each.entries), refused_count=count
                )
                for each, count in page.items
            ],
            next_page_token=page.next_token,
        )

    async def StartRateLimitRecording(
        self, request: pb.StartRateLimitRecordingRequest, context: Context
    ) -> pb.StartRateLimitRecordingResponse:
        administrator, ends_at = caller_of(context).user_id, request.expire_time.ToDatetime(UTC)
        recording = await self._recordings.start(administrator, ends_at, request.most, request.reason)
        return pb.StartRateLimitRecordingResponse(recording=_recording(recording))

    async def StopRateLimitRecording(
        self, request: pb.StopRateLimitRecordingRequest, context: Context
    ) -> pb.StopRateLimitRecordingResponse:
        stopped = await self._recordings.stop(caller_of(context).user_id, request.reason)
        return pb.StopRateLimitRecordingResponse(recording=_recording(stopped))

    async def TryRateLimitRules(
        self, request: pb.TryRateLimitRulesRequest, context: Context
    ) -> pb.TryRateLimitRulesResponse:
        compared = await self._recordings.compare(request.rules)
        admitted, then = compared.admitted
        return pb.TryRateLimitRulesResponse(
            call_count=compared.calls,
            admitted_count=admitted,
            admitted_then_count=then,
            differences=[
                pb.RateLimitDifference(
                    before=words[0],
                    then=words[1],
                    call_count=count,
                    descriptors=[
                        messages.RateLimitDescriptor(entries=_entries(each.entries))
                        for each in compared.first[words].descriptors
                    ],
                )
                for words, count in compared.kinds.most_common(_MOST_DIFFERENCES)
            ],
        )

    async def ListRateLimitChanges(
        self, request: pb.ListRateLimitChangesRequest, context: Context
    ) -> pb.ListRateLimitChangesResponse:
        page = await self._listing.changes(request.page_size, request.page_token)
        return pb.ListRateLimitChangesResponse(changes=map(_change, page.items), next_page_token=page.next_token)


def _subject(message: messages.RateLimitSubject) -> Subject:
    return Subject(
        message.client_address,
        message.user_id,
        message.rate_limit_class,
        tuple(tuple((entry.key, entry.value) for entry in each.entries) for each in message.descriptors),
        message.domain,
    )


def _call(call: ExplainedCall) -> messages.ExplainedCall:
    message = messages.ExplainedCall(
        rate_limit_class=call.rate_limit_class,
        admitted=call.admitted,
        reason=_reason(call),
        deciding_rule=call.deciding.name if call.deciding else "",
        descriptors=[_descriptor(each, shadow=call.shadow) for each in call.descriptors],
    )
    if call.retry_at is not None:
        _set_instant(message.retry_time, call.retry_at)
    return message


def _reason(call: ExplainedCall) -> str:
    if call.admitted:
        return ""
    if call.permanent:
        return RATE_LIMIT_UNSATISFIABLE
    banned = call.deciding is not None and call.deciding.group == OverrideKind.BAN
    return RATE_LIMIT_BANNED if banned else _LIMITED


def _descriptor(descriptor: ExplainedDescriptor, *, shadow: bool) -> messages.ExplainedDescriptor:
    return messages.ExplainedDescriptor(
        entries=_entries(descriptor.entries),
        rules=[_explained(each, shadow=shadow) for each in descriptor.rules],
        denied_unmatched=descriptor.denied_unmatched,
    )


def _explained(explained: ExplainedRule, *, shadow: bool) -> messages.ExplainedRule:
    return messages.ExplainedRule(
        rule=_rule(explained.rule, shadow=shadow),
        applies=not explained.why_not,
        why_not=explained.why_not,
        refuses=explained.refuses,
        bucket=_bucket(explained.level) if explained.level else None,
    )


def _entries(entries: Entries) -> list[messages.RateLimitEntry]:
    return [messages.RateLimitEntry(key=key, value=value) for key, value in entries]


def _bucket(level: Level) -> messages.RateLimitBucket:
    (verdict,) = level.look.verdicts
    message = messages.RateLimitBucket(
        rule=level.rule.name, key=level.key, limit=verdict.limit.burst, remaining=verdict.remaining
    )
    if verdict.debt:
        _set_instant(message.more_time, level.look.at + verdict.more_after)
        _set_instant(message.full_time, level.look.at + (verdict.ends or verdict.debt))
    return message


def _rule(rule: Rule, *, shadow: bool) -> messages.RateLimitRule:
    return messages.RateLimitRule(
        domain=rule.domain,
        name=rule.name,
        place=rule.place,
        match=" ".join(map(str, rule.match)),
        limit=limit_of(rule),
        on_redis_down=rule.on_redis_down if rule.limit is not None or isinstance(rule, LeaseRule) else "",
        shadow=rule.shadow or shadow,
        override_id=rule.name.partition("-")[2] if rule.group else "",
    )


def _override(override: Override) -> messages.RateLimitOverride:
    message = messages.RateLimitOverride(
        id=str(override.id),
        kind=_KINDS[override.kind],
        domain=override.domain,
        match=" ".join(map(str, override.match)),
        limit=limit_of(override.rule),
        actor=str(override.actor_id),
        reason=override.reason,
    )
    _set_instant(message.create_time, override.made_at)
    _set_instant(message.expire_time, override.ends_at)
    return message


def _recording(recording: Recording) -> messages.RateLimitRecording:
    message = messages.RateLimitRecording(call_count=recording.count, most=recording.most)
    set_time(message.expire_time, recording.ends_at)
    return message


def _change(recorded: RecordedChange) -> messages.RateLimitChange:
    change = recorded.change
    message = messages.RateLimitChange(
        id=recorded.id,
        act=_ACTS[change.act],
        actor=str(change.actor_id),
        reason=change.reason,
        subject=change.subject,
    )
    set_time(message.create_time, recorded.made_at)
    return message


def _set_instant(field: Timestamp, microseconds: int) -> None:
    """Sets a time that is given in microseconds since 1970."""
    field.FromMicroseconds(microseconds)
