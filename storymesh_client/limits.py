"""The group `limits` of the command: what administrators ask of the rate limiter and change in it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from storymesh.ops.v1 import rate_limit_pb2 as messages
from storymesh.ops.v1 import rate_limit_service_pb2 as pb

from . import printing
from .client import Storymesh

_PAGE_SIZE = 100
_UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_LONGEST_DURATION = 6
"""Characters of a duration, whose end is a time that a message can hold."""


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    place: argparse.ArgumentParser,
    listing: argparse.ArgumentParser,
) -> None:
    """Adds the group's commands, each with the options of both parents that concern it."""
    of_whom = argparse.ArgumentParser(add_help=False)
    of_whom.add_argument("--address", default="", metavar="ADDRESS", help="a client's address, such as 192.0.2.7")
    of_whom.add_argument("--user", default="", metavar="ID", help="a user's id")
    of_whom.add_argument("--class", default="", dest="rate_limit_class", metavar="CLASS", help="only this class")
    why = argparse.ArgumentParser(add_help=False)
    why.add_argument("--reason", required=True, metavar="WORDS", help="why, for the record")

    _add(commands, "explain", "Say why calls pass or are refused, by which rules and buckets", place, of_whom, listing)
    _add(commands, "inspect", "Show what buckets hold", place, of_whom, listing)
    reset = _add(commands, "reset", "Fill buckets", place, of_whom, why)
    reset.add_argument("--rule", default="", metavar="NAME", help="only the bucket of this rule")
    until = argparse.ArgumentParser(add_help=False)
    until.add_argument(
        "--for", required=True, dest="lasts", type=_duration, metavar="TIME", help="such as 90s, 15m, 2h or 30d"
    )
    grant = _add(commands, "grant", "Raise or lift a limit for a time", place, of_whom, until, why)
    grant.add_argument("--rate", default="", metavar="RATE", help="calls per time, such as 100/s; with --burst")
    grant.add_argument("--burst", default=0, type=int, metavar="N", help="how many may pass at once")
    grant.add_argument("--unlimited", action="store_true", help="count nothing; in place of --rate and --burst")
    _add(commands, "ban", "Refuse all calls for a time; --address may be a network", place, of_whom, until, why)
    lift = _add(commands, "lift", "End a grant or a ban before its time", place, why)
    lift.add_argument("override_id", metavar="ID", help="from the list")
    _add(commands, "overrides", "List grants and bans that have not ended, newest first", place, listing)
    offenders = _add(commands, "offenders", "List who was refused most often lately", place, listing)
    offenders.add_argument("--minutes", type=int, default=10, metavar="N", help="how far back, up to 60 (10)")
    record = _add(commands, "record", "Record calls for a time, to try rules with", place, until, why)
    record.add_argument("--most", type=int, default=0, metavar="N", help="at most so many, up to 5,000")
    _add(commands, "stop", "End the recording before its time", place, why)
    trial = _add(commands, "try", "Say which recorded calls other rules would decide otherwise", place, listing)
    trial.add_argument("file", type=argparse.FileType(encoding="utf-8"), help="the YAML file of the other rules")
    _add(commands, "rules", "List the rules in force", place, listing)
    _add(commands, "changes", "List what administrators changed, newest first", place, listing)


async def run(mesh: Storymesh, options: argparse.Namespace) -> None:
    """Runs one of them and prints its answer. Raises StorymeshError."""
    match options.verb:
        case "explain":
            explained = await mesh.rate_limits.ExplainRateLimit(pb.ExplainRateLimitRequest(subject=_subject(options)))
            print(printing.as_json(explained) if options.json else "\n".join(_explanation(explained)))
        case "inspect":
            inspected = await mesh.rate_limits.InspectRateLimit(pb.InspectRateLimitRequest(subject=_subject(options)))
            print(printing.as_json(inspected) if options.json else _buckets(inspected))
        case "reset":
            request = pb.ResetRateLimitRequest(subject=_subject(options), rule=options.rule, reason=options.reason)
            count = (await mesh.rate_limits.ResetRateLimit(request)).reset_count
            print(
                f"{count} bucket{' was' if count == 1 else 's were'} not full and {'is' if count == 1 else 'are'} now."
            )
        case "grant" | "ban" | "lift":
            print(printing.plain(await _changed(mesh, options)))
        case "overrides":
            await _print_overrides(mesh, options)
        case "record" | "stop":
            recording = await _recorded(mesh, options)
            print(f"{recording.call_count} of {recording.most} calls, until {printing.time(recording.expire_time)}")
        case "try":
            tried = await mesh.rate_limits.TryRateLimitRules(pb.TryRateLimitRulesRequest(rules=options.file.read()))
            print(printing.as_json(tried) if options.json else "\n".join(_differences(tried)))
        case "offenders":
            listed = await mesh.rate_limits.ListRateLimitOffenders(
                pb.ListRateLimitOffendersRequest(minutes=options.minutes, page_size=_PAGE_SIZE)
            )
            print(printing.as_json(listed) if options.json else _offenders(listed))
        case "rules":
            await _print_rules(mesh, options)
        case _:
            await _print_changes(mesh, options)


async def _changed(mesh: Storymesh, options: argparse.Namespace) -> str:
    """Makes or lifts a grant or a ban, and says what was done."""
    if options.verb == "lift":
        request = pb.LiftRateLimitOverrideRequest(override_id=options.override_id, reason=options.reason)
        lifted = (await mesh.rate_limits.LiftRateLimitOverride(request)).override
        return f"Lifted: {_kind(lifted)} for {lifted.match}."
    ends = Timestamp()
    ends.FromDatetime(datetime.now(UTC) + options.lasts)
    if options.verb == "ban":
        banning = pb.BanCallerRequest(subject=_subject(options), expire_time=ends, reason=options.reason)
        made = (await mesh.rate_limits.BanCaller(banning)).override
    else:
        granting = pb.GrantRateLimitRequest(
            subject=_subject(options),
            expire_time=ends,
            reason=options.reason,
            unlimited=options.unlimited,
            rate=options.rate,
            burst=options.burst,
        )
        made = (await mesh.rate_limits.GrantRateLimit(granting)).override
    return f"Made: {_kind(made)} for {made.match}: {made.limit} until {printing.time(made.expire_time)}, {made.id}"


async def _print_overrides(mesh: Storymesh, options: argparse.Namespace) -> None:
    request, overrides = pb.ListRateLimitOverridesRequest(page_size=_PAGE_SIZE), pb.ListRateLimitOverridesResponse()
    while True:
        page = await mesh.rate_limits.ListRateLimitOverrides(request)
        overrides.overrides.extend(page.overrides)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    if options.json:
        print(printing.as_json(overrides))
        return
    rows = [
        (each.id, _kind(each), each.match, each.limit, printing.time(each.expire_time), each.actor, each.reason)
        for each in overrides.overrides
    ]
    print(printing.table(("id", "kind", "whom", "limit", "until", "by", "why"), rows))


def _kind(override: messages.RateLimitOverride) -> str:
    return "ban" if override.kind == messages.RATE_LIMIT_OVERRIDE_KIND_BAN else "grant"


def _duration(text: str) -> timedelta:
    """A time written as 90s, 15m, 2h or 30d. Raises ArgumentTypeError."""
    unit = _UNITS.get(text[-1:])
    if unit is None or not (text[:-1].isascii() and text[:-1].isdigit()) or len(text) > _LONGEST_DURATION:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write one such as 90s, 15m, 2h or 30d")
    return int(text[:-1]) * unit


async def _print_rules(mesh: Storymesh, options: argparse.Namespace) -> None:
    request = pb.ListRateLimitRulesRequest(page_size=_PAGE_SIZE)
    page = await mesh.rate_limits.ListRateLimitRules(request)
    whole = pb.ListRateLimitRulesResponse()
    whole.CopyFrom(page)
    while page.next_page_token:
        request.page_token = page.next_page_token
        page = await mesh.rate_limits.ListRateLimitRules(request)
        whole.rules.extend(page.rules)
    whole.next_page_token = ""
    if options.json:
        print(printing.as_json(whole))
        return
    print(f"{whole.source}, read {printing.time(whole.load_time)}, SHA-256 {whole.digest[:12]}")
    if whole.fault:
        print(printing.plain(f"The file as it is now cannot be used, so these rules stay in force:\n{whole.fault}"))
    rows = [
        (each.name, each.match, each.limit, each.on_redis_down, "shadow" if each.shadow else "", each.place)
        for each in whole.rules
    ]
    print(printing.table(("rule", "matches", "limit", "Redis down", "", "place"), rows))


async def _print_changes(mesh: Storymesh, options: argparse.Namespace) -> None:
    request, changes = pb.ListRateLimitChangesRequest(page_size=_PAGE_SIZE), pb.ListRateLimitChangesResponse()
    while True:
        page = await mesh.rate_limits.ListRateLimitChanges(request)
        changes.changes.extend(page.changes)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    if options.json:
        print(printing.as_json(changes))
        return
    rows = [
        (
            printing.time(each.create_time),
            messages.RateLimitAct.Name(each.act).removeprefix("RATE_LIMIT_ACT_").lower().replace("_", " "),
            each.subject,
            each.actor,
            each.reason,
        )
        for each in changes.changes
    ]
    print(printing.table(("when", "what", "whom", "by", "why"), rows))


def _subject(options: argparse.Namespace) -> messages.RateLimitSubject:
    return messages.RateLimitSubject(
        client_address=options.address, user_id=options.user, rate_limit_class=options.rate_limit_class
    )


def _explanation(explained: pb.ExplainRateLimitResponse) -> Iterator[str]:
    for call in explained.calls:
        verdict = "passes" if call.admitted else f"is refused: {call.reason}"
        by = f", by {call.deciding_rule}" if call.deciding_rule else ""
        when = f", until {printing.time(call.retry_time)}" if call.HasField("retry_time") else ""
        yield printing.plain(f"{call.rate_limit_class or 'the call'} {verdict}{by}{when}")
        for descriptor in call.descriptors:
            for each in descriptor.rules:
                if each.why_not:
                    told = f"does not apply: {each.why_not}"
                else:
                    told = f"{'refuses' if each.refuses else 'applies'}: {each.rule.limit}"
                    if each.HasField("bucket"):
                        told += f", {each.bucket.remaining} of {each.bucket.limit} left"
                yield printing.plain(f"  {each.rule.name} {told} ({each.rule.place})")
            if not descriptor.rules:
                entries = " ".join(f"{entry.key}={entry.value}" for entry in descriptor.entries)
                yield printing.plain(f"  no rule matches {entries}")


async def _recorded(mesh: Storymesh, options: argparse.Namespace) -> messages.RateLimitRecording:
    """Begins or ends a recording."""
    if options.verb == "stop":
        stop = pb.StopRateLimitRecordingRequest(reason=options.reason)
        return (await mesh.rate_limits.StopRateLimitRecording(stop)).recording
    start = pb.StartRateLimitRecordingRequest(most=options.most, reason=options.reason)
    start.expire_time.FromDatetime(datetime.now(UTC) + options.lasts)
    return (await mesh.rate_limits.StartRateLimitRecording(start)).recording


def _differences(tried: pb.TryRateLimitRulesResponse) -> Iterator[str]:
    yield f"{tried.call_count} calls: {tried.admitted_count} admitted now, {tried.admitted_then_count} by these rules"
    for each in tried.differences:
        first = "; ".join(
            " ".join(f"{entry.key}={entry.value}" for entry in descriptor.entries) for descriptor in each.descriptors
        )
        yield printing.plain(f"  {each.call_count} times {each.before}, then {each.then}; the first: {first}")


def _offenders(listed: pb.ListRateLimitOffendersResponse) -> str:
    rows = [
        (str(each.refused_count), " ".join(f"{entry.key}={entry.value}" for entry in each.entries), each.rule)
        for each in listed.offenders
    ]
    return printing.table(("refused", "whose", "by rule"), rows)


def _buckets(inspected: pb.InspectRateLimitResponse) -> str:
    rows = [
        (each.rule, f"{each.remaining} of {each.limit}", printing.time(each.more_time), printing.time(each.full_time))
        for each in inspected.buckets
    ]
    return printing.table(("rule", "left", "one more", "full"), rows)


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    description: str,
    *parents: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=description, description=f"{description}.", parents=list(parents))
