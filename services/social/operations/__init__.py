"""Operations of the social service. They open the transactions, and build the event messages that go into the outbox."""

from __future__ import annotations

from dataclasses import dataclass

from kit.data.paging import Pages
from kit.identity.signing import Signer
from kit.rpc.resources import Resources

from ..config import SocialSettings, SocialWorkerSettings
from ..model.handles import HandleDigests
from .directory import Directory
from .erasing import Erasing
from .profiles import Profiles
from .pruning import Pruning
from .registering import Registering
from .stances import Stances


@dataclass(frozen=True)
class Operations:
    """The operations behind the API."""

    profiles: Profiles
    stances: Stances
    directory: Directory


@dataclass(frozen=True)
class WorkerOperations:
    """The operations that the worker runs."""

    registering: Registering
    erasing: Erasing
    pruning: Pruning


def operations(settings: SocialSettings, resources: Resources) -> Operations:
    digests = HandleDigests(settings.handle_key.get_secret_value())
    pages = Pages(Signer(settings.cursor_key.get_secret_value()))
    return Operations(
        Profiles(resources.db, digests, resources.clock),
        Stances(resources.db, pages, resources.clock),
        Directory(resources.db),
    )


def worker_operations(settings: SocialWorkerSettings, resources: Resources) -> WorkerOperations:
    digests = HandleDigests(settings.handle_key.get_secret_value())
    return WorkerOperations(
        Registering(resources.db, resources.clock),
        Erasing(resources.db, digests, resources.clock),
        Pruning(resources.db, resources.clock),
    )
