"""The growing text of one attempt, and its copy in the progress stream for watchers."""

from __future__ import annotations

import logging

import redis.exceptions

from services.story.store.progress import Overtaken, Progress, ProgressKind

from ..model import Checkpoint, Position, Story

log = logging.getLogger(__name__)


class Draft:
    """One attempt's text, copied into the progress stream.

    The stream serves watchers only (fail-open): writing goes on while Redis does not answer. The first append that succeeds again
    is a snapshot of the whole text, so that no watcher misses a word.
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
        """Append the attempt's first entry: a snapshot of the checkpoint's text, or BEGIN without one. Raises Overtaken."""
        if self.text:
            await self._append(ProgressKind.SNAPSHOT, self.text)
        else:
            await self._append(ProgressKind.BEGIN)

    async def add(self, words: str) -> None:
        """Add words to the text and the stream. Raises Overtaken."""
        self.text += words
        await self._append(ProgressKind.CHUNK, words)

    async def end(self) -> None:
        """Append END, on which watchers read the story from Postgres. Without it their next poll finds the change."""
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
