"""Avatars as they are shown: by URLs that the file service signs."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from kit.errors import MeshError
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from ..errors import NoAvatar
from ..model import Profile
from ..model.avatars import SIZE, SignedAvatar
from .profiles import Profiles

log = logging.getLogger(__name__)

_KEPT = 10_000
_PAUSE = timedelta(seconds=2)
_MARGIN = timedelta(minutes=1)


class Files(Protocol):
    """What the file service does for avatars."""

    async def sign(self, file_ids: Sequence[UUID], size: int) -> Mapping[UUID, SignedAvatar]:
        """Those of the files, at most 100, that are there. Raises Unavailable when the file service does not answer."""
        ...


class Avatars:
    """Hands a URL out again while half of its life is left, so that browsers keep the image and a list seldom costs a call."""

    def __init__(self, profiles: Profiles, files: Files, clock: Clock) -> None:
        self._profiles = profiles
        self._files = files
        self._clock = clock
        self._signed: OrderedDict[tuple[UUID, int], SignedAvatar] = OrderedDict()
        self._away_until: datetime | None = None

    async def get(self, caller: Caller, user_id: UUID, size: int) -> SignedAvatar:
        """The person's avatar. Raises UserNotFound, NoAvatar, and Unavailable while the file service does not answer."""
        file_id = (await self._profiles.get(caller, user_id)).profile.avatar_file_id
        signed = await self._signed_of([file_id], size or SIZE) if file_id else {}
        if file_id is None or file_id not in signed:
            raise NoAvatar
        return signed[file_id]

    def kept_for(self, signed: SignedAvatar) -> timedelta:
        """How long a browser may use the answer: a minute less than the URL works."""
        return max(timedelta(), signed.expires_at - self._clock() - _MARGIN)

    async def urls(self, profiles: Iterable[Profile]) -> Mapping[UUID, str]:
        """URLs of the avatars of at most 100 profiles, by file. Fewer, or none, while the file service does not answer.

        Fail-open: people are shown without their pictures rather than not at all, and nobody waits for each list anew.
        """
        wanted = [each.avatar_file_id for each in profiles if each.avatar_file_id]
        if not wanted:
            return {}
        now = self._clock()
        if self._away_until and now < self._away_until:
            return {file_id: each.url for file_id, each in self._fresh(wanted, SIZE, now).items()}
        try:
            signed = await self._signed_of(wanted, SIZE)
        except MeshError as error:
            self._away_until = now + _PAUSE
            log.warning("profiles are shown without avatars, because the file service does not answer: %s", error)
            signed = self._fresh(wanted, SIZE, now)
        return {file_id: each.url for file_id, each in signed.items()}

    async def _signed_of(self, file_ids: Sequence[UUID], size: int) -> Mapping[UUID, SignedAvatar]:
        fresh = self._fresh(file_ids, size, self._clock())
        stale = [file_id for file_id in dict.fromkeys(file_ids) if file_id not in fresh]
        if not stale:
            return fresh
        signed = await self._files.sign(stale, size)
        for file_id, each in signed.items():
            self._signed[file_id, size] = each
            self._signed.move_to_end((file_id, size))
        while len(self._signed) > _KEPT:
            self._signed.popitem(last=False)
        return {**fresh, **signed}

    def _fresh(self, file_ids: Iterable[UUID], size: int, now: datetime) -> dict[UUID, SignedAvatar]:
        kept = {file_id: self._signed.get((file_id, size)) for file_id in file_ids}
        return {file_id: each for file_id, each in kept.items() if each and each.is_fresh(now)}
