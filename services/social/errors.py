"""The refusals of the social service. Their reasons are permanent."""

from __future__ import annotations

from kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Violation


class UserNotFound(NotFound):
    """The one answer about people who are not there, and about those who block the caller. Without metadata: answers are equal."""

    reason = "USER_NOT_FOUND"
    message = "there is no such person"


class ProfileDeleted(NotFound):
    """Answered to the owner alone; to others the person is not found."""

    reason = "PROFILE_DELETED"
    message = "the profile was deleted; change it to have a new one"


class ProfileErasing(FailedPrecondition):
    reason = "PROFILE_ERASING"
    message = "the former profile is still being erased; try again soon"


class HandleTaken(AlreadyExists):
    reason = "HANDLE_TAKEN"
    message = "the handle belongs to another person, or did until not long ago; choose another one"


class HandleChangedTooOften(ResourceExhausted):
    """Also for a handle that is taken: otherwise a person could ask for any number of them."""

    reason = "HANDLE_CHANGED_TOO_OFTEN"
    message = "the handle was changed twice in 14 days; wait before the next change"


class FileNotFound(NotFound):
    """The one answer about files that are not there and those of others."""

    reason = "FILE_NOT_FOUND"
    message = "there is no such file"


class FileNotReady(FailedPrecondition):
    reason = "FILE_NOT_READY"
    message = "the file is not uploaded, not checked yet, or was refused"


class FilePurposeMismatch(FailedPrecondition):
    reason = "FILE_PURPOSE_MISMATCH"
    message = "the file was uploaded for something else; upload it as an avatar"


class NoAvatar(NotFound):
    """Answered only about people whom the caller sees."""

    reason = "NO_AVATAR"
    message = "the person has no avatar"


class HandleReserved(InvalidArgument):
    """A word of the operator's, or what looks like one."""

    def __init__(self) -> None:
        super().__init__([Violation("handle", "is reserved; choose another one", "HANDLE_RESERVED")])


class OwnId(InvalidArgument):
    """A person cannot take a stance towards themselves."""

    reason = "SELF"
    message = "this is the caller's own id"

    def __init__(self) -> None:
        super().__init__([Violation("user_id", "is the caller's own", "SELF")])
