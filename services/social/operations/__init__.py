"""Operations of the social service. They open the transactions, and build the event messages that go into the outbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kit.data.paging import Pages
from kit.identity.signing import Signer
from kit.rpc.resources import Resources

from ..config import SocialSettings, SocialWorkerSettings
from ..model.handles import HandleDigests
from .avatars import Avatars, Files
from .claims import Claims, LostAvatars
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
    avatars: Avatars
    stances: Stances
    directory: Directory


@dataclass(frozen=True)
class WorkerOperations:
    """The operations that the worker runs."""

    registering: Registering
    erasing: Erasing
    lost_avatars: LostAvatars
    pruning: Pruning


class FileService(Claims, Files, Protocol):
    """What the operations call of the file service."""


def operations(settings: SocialSettings, resources: Resources, files: FileService) -> Operations:
    """Build the operations behind the API. `files` is a parameter because operations may not import peers."""
    digests = HandleDigests(settings.handle_key.get_secret_value())
    pages = Pages(Signer(settings.cursor_key.get_secret_value()))
    profiles = Profiles(resources.db, files, digests, resources.clock)
    return Operations(
        profiles,
        Avatars(profiles, files, resources.clock),
        Stances(resources.db, pages, resources.clock),
        Directory(resources.db),
    )


def worker_operations(settings: SocialWorkerSettings, resources: Resources) -> WorkerOperations:
    digests = HandleDigests(settings.handle_key.get_secret_value())
    return WorkerOperations(
        Registering(resources.db, resources.clock),
        Erasing(resources.db, digests, resources.clock),
        LostAvatars(resources.db),
        Pruning(resources.db, resources.clock),
    )
