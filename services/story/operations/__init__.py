"""Operations of the story service. They open the transactions, and build the event messages that go into the outbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from kit.data.paging import Pages
from kit.events.inbox_stream import waiting_since
from kit.identity.signing import Signer
from kit.rpc.resources import Resources
from kit.rpc.watch_leases import watch_leases

from ..adapters.writers import LANGUAGES, WITH_TOKENS, Writer
from ..config import StorySettings, StoryWorkerSettings
from ..model import Limits
from ..model.links import LinkPaths
from ..store.progress import Progress
from .admission import Admission
from .erasing import Erasing
from .interruptions import Interruptions
from .links import Links
from .pruning import Pruning
from .spending import Tokens
from .stories import PreferencesOf, Stories
from .sweeping import Sweeper
from .watching import Watches, WatchLimits
from .writing import Writing, pause_seconds


@dataclass(frozen=True)
class Operations:
    """The operations behind the API."""

    stories: Stories
    links: Links
    watches: Watches
    admission: Admission


@dataclass(frozen=True)
class WorkerOperations:
    """The operations that the worker runs."""

    writing: Writing
    erasing: Erasing
    interruptions: Interruptions
    sweeper: Sweeper
    pruning: Pruning


def operations(settings: StorySettings, resources: Resources, preferences_of: PreferencesOf) -> Operations:
    """Build the operations behind the API.

    `preferences_of` is a parameter because it calls a peer, and operations may not import peers.
    """
    signer = Signer(settings.cursor_key.get_secret_value())
    progress = Progress(resources.redis)
    limits = Limits(
        unfinished=settings.stories_unfinished, a_day=settings.stories_a_day, backlog=settings.stories_backlog
    )
    admission = Admission(limits)
    stories = Stories(
        resources.db,
        Pages(signer),
        preferences_of,
        resources.clock,
        progress=progress,
        admission=admission,
        languages=LANGUAGES[settings.writer],
    )
    paths = LinkPaths(Signer(settings.link_key.get_secret_value()))
    links = Links(resources.db, Pages(signer), paths, resources.clock)
    watch_limits = WatchLimits(
        per_person=settings.watches_per_person,
        altogether=settings.watches,
        stories=settings.watched_stories,
        entries_behind=settings.watch_entries_behind,
    )
    watches = Watches(
        resources.db,
        stories,
        progress,
        signer,
        watch_limits,
        heartbeat_seconds=settings.heartbeat_seconds,
        leases=watch_leases(resources, settings.ratelimit_target, "stories"),
    )
    return Operations(stories, links, watches, admission)


def worker_operations(
    settings: StoryWorkerSettings,
    resources: Resources,
    writer: Writer,
    *,
    interruptions: Interruptions | None = None,
    backoff: Callable[[int], float] = pause_seconds,
    tokens: Tokens | None = None,
) -> WorkerOperations:
    """Build the operations of the worker.

    `tokens` is a parameter because it calls a peer; a writer without a model spends none.
    `backoff` maps the number of failed attempts at a story to a pause in seconds. `interruptions` is for tests that run several
    workers in one process with one subscription to Redis.
    """
    progress = Progress(resources.redis)
    interruptions = interruptions or Interruptions(resources.redis)
    erasing = Erasing(resources.db, progress, resources.clock)
    writing = Writing(
        resources.db,
        progress,
        writer,
        resources.clock,
        interruptions=interruptions,
        lease=timedelta(seconds=settings.lease_seconds),
        seconds=settings.story_seconds,
        life=timedelta(seconds=settings.story_life_seconds),
        attempts=settings.story_attempts,
        limit=settings.writer_limit,
        backoff=backoff,
        tokens=tokens if settings.writer in WITH_TOKENS else None,
    )
    return WorkerOperations(
        writing,
        erasing,
        interruptions,
        Sweeper(resources.db, partial(waiting_since, resources.redis, "story")),
        Pruning(resources.db, erasing, resources.clock),
    )
