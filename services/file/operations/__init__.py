"""Operations of the file service. They open the transactions, and build the event messages that go into the outbox."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from kit.data.paging import Pages
from kit.events.inbox_stream import waiting_since
from kit.identity.signing import Signer
from kit.rpc.resources import Resources
from kit.rpc.watch_leases import watch_leases
from kit.rpc.watches import OpenWatches

from ..adapters.clamd import Scanner
from ..adapters.images.pool import ImagePool
from ..config import FileSettings, FileWorkerSettings
from ..model.quotas import DAY, Limits
from .checking import INBOX, Checking
from .claims import Claims
from .erasing import Erasing
from .files import Files
from .pruning import LostChecks, Pruning
from .quotas import Quotas
from .removing import Removing
from .signing import Signing
from .sweeping import Sweeper
from .uploads import Uploads
from .watching import Watches


@dataclass(frozen=True)
class Operations:
    """The operations behind the API."""

    files: Files
    uploads: Uploads
    claims: Claims
    watches: Watches


@dataclass(frozen=True)
class WorkerOperations:
    """The operations that the worker runs."""

    checking: Checking
    removing: Removing
    erasing: Erasing
    claims: Claims
    pruning: Pruning
    lost_checks: LostChecks
    sweeper: Sweeper


def operations(settings: FileSettings, resources: Resources) -> Operations:
    """Build the operations behind the API."""
    signer = Signer(settings.cursor_key.get_secret_value())
    pages = Pages(signer)
    signing = Signing(
        resources.objects,
        upload_for=timedelta(seconds=settings.files_upload_seconds),
        download_for=timedelta(seconds=settings.files_download_seconds),
        clock=resources.clock,
    )
    limits = Limits(
        stored_bytes=settings.files_bytes,
        files=settings.files_most,
        bytes_a_day=settings.files_bytes_a_day,
        files_a_day=settings.files_a_day,
    )
    files = Files(
        resources.db,
        pages,
        signing,
        Quotas(limits),
        resources.clock,
        random=resources.random,
        pending_for=timedelta(seconds=settings.files_pending_seconds),
    )
    open_watches = OpenWatches(
        per_person=settings.watches_per_person,
        altogether=settings.watches,
        leases=watch_leases(resources, settings.ratelimit_target, "files"),
    )
    watches = Watches(
        files,
        signer,
        open_watches,
        database_url=resources.database_url,
        heartbeat_seconds=settings.heartbeat_seconds,
    )
    uploads = Uploads(resources.db, files, resources.objects, signing=signing, pages=pages, clock=resources.clock)
    return Operations(files, uploads, Claims(resources.db, signing, resources.clock), watches)


def worker_operations(
    settings: FileWorkerSettings, resources: Resources, images: ImagePool, scanner: Scanner | None
) -> WorkerOperations:
    """Build the operations of the worker. Without a scanner files are not scanned."""
    db, objects, clock = resources.db, resources.objects, resources.clock
    removing = Removing(db, objects, clock)
    # Claims hand out signed downloads in the server alone; how long one would last here does not matter.
    signing = Signing(objects, upload_for=DAY, download_for=DAY, clock=clock)
    return WorkerOperations(
        Checking(db, objects, images, scanner, removing, clock=clock),
        removing,
        Erasing(db, removing, clock),
        Claims(db, signing, clock),
        Pruning(db, removing, clock),
        LostChecks(db, partial(waiting_since, resources.redis, INBOX), clock),
        Sweeper(db, objects, clock, deletes=settings.files_sweep == "delete", seconds=settings.files_sweep_seconds),
    )
