"""The refusals of the story service. Their reasons are permanent."""

from __future__ import annotations

from kit.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted, Unavailable


class StoryNotFound(NotFound):
    reason = "STORY_NOT_FOUND"
    message = "there is no such story"


class RequestIdReused(AlreadyExists):
    reason = "REQUEST_ID_REUSED"
    message = "this request_id came with other parameters before; choose a new one"


class StoryLinkNotFound(NotFound):
    reason = "STORY_LINK_NOT_FOUND"
    message = "the link does not work, or not any more"


class StoryNotCompleted(FailedPrecondition):
    reason = "STORY_NOT_COMPLETED"
    message = "only a story that is written to its end can be shown by a link"


class StoryNotCancellable(FailedPrecondition):
    reason = "STORY_NOT_CANCELLABLE"
    message = "the story is finished"


class StoryNotRetryable(FailedPrecondition):
    reason = "STORY_NOT_RETRYABLE"
    message = "only a failed or cancelled story can be written anew"


class StoryLanguageUnsupported(FailedPrecondition):
    """A retry of a story in a language that the present writer does not write; it was requested under another writer."""

    reason = "LANGUAGE_UNSUPPORTED"
    message = "stories are not written in this story's language any more"


class StoryQuotaExceeded(ResourceExhausted):
    reason = "STORY_QUOTA_EXCEEDED"
    message = "too many stories were asked for; wait until one is finished, or until tomorrow"


class TokenQuotaExceeded(ResourceExhausted):
    """Raised to the worker: the story fails for it, and may be retried once the quota's next period has begun."""

    reason = "TOKEN_QUOTA_EXCEEDED"
    message = "the person's tokens are used up"


class BacklogFull(ResourceExhausted):
    reason = "BACKLOG_FULL"
    message = "more stories wait than can be written in time; try again later"


class Interrupted(Unavailable):
    """A transient failure has ended the reader of a story."""
