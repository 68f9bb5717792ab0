"""The text of one attempt as it grows, shown to whoever watches."""

from __future__ import annotations

import logging

import redis.exceptions

from services.story.store.progress import Overtaken, Progress, ProgressKind

from ..model import Checkpoint, Position, Story

log = logging.getLogger(__name__)


class Draft:
    """One attempt's text, mirrored into the progress stream.

    The stream is for watchers only: while Redis is away the writing goes on, and the first append after that repeats the whole
    text, so that no watcher misses a word.
    """

    def __init__(self, progress: Progress, story: Story) -> None:
        self.title = story.title
        self.text = story.text
        self.tokens = (0, 0)
        self._progress = progress
        self._story_id = story.id
        self._position = Position(story.attempt, 0)
        self._told_title = story.title
        self._complete = True

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.title, self.text)

    async def begin(self) -> None:
        """Raises Overtaken."""
        if self.text:
            # Goes on from the checkpoint: no watcher has to start over.
            await self._append(ProgressKind.SNAPSHOT, self.text)
        else:
            await self._append(ProgressKind.BEGIN)

    async def add(self, words: str) -> None:
        """Raises Overtaken."""
        self.text += words
        await self._append(ProgressKind.CHUNK, words)

    async def end(self) -> None:
        """Tells watchers to look at the story; without it they look a few seconds later by themselves."""
        try:
            await self._append(ProgressKind.END)
        except Overtaken:
            return

    async def _append(self, kind: ProgressKind, text: str = "") -> None:
        position = self._position
        self._position = Position(position.attempt, position.offset + 1)
        title = self.title if self.title != self._told_title else ""
        try:
            if self._complete and await self._progress.append(self._story_id, position, kind, text, title=title):
                self._told_title = self.title
                return
            await self._progress.append(self._story_id, position, ProgressKind.SNAPSHOT, self.text, title=self.title)
            self._told_title = self.title
            self._complete = True
            if kind is ProgressKind.END:
                await self.end()
        except (redis.exceptions.RedisError, OSError) as error:
            self._complete = False
            log.warning("progress of story %s cannot be shown now: %s", self._story_id, error)
