"""The refusals of the file service. Their reasons are permanent."""

from __future__ import annotations

from kit.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted


class FileNotFound(NotFound):
    reason = "FILE_NOT_FOUND"
    message = "there is no such file"


class RequestIdReused(AlreadyExists):
    reason = "REQUEST_ID_REUSED"
    message = "this request_id came with other parameters before; choose a new one"


class FileQuotaExceeded(ResourceExhausted):
    reason = "FILE_QUOTA_EXCEEDED"
    message = "the file does not fit into what you may store; delete files, or wait where the quota is one of a day"


class FileNotPending(FailedPrecondition):
    reason = "FILE_NOT_PENDING"
    message = "the file is uploaded already, or its upload has expired"


class FileNotUploaded(FailedPrecondition):
    reason = "FILE_NOT_UPLOADED"
    message = "the store does not have the file's bytes; upload them first"


class FileExpired(FailedPrecondition):
    reason = "FILE_EXPIRED"
    message = "the file was not uploaded in time, or its upload was given up; create it again"


class FileNotReady(FailedPrecondition):
    reason = "FILE_NOT_READY"
    message = "only a file that was checked and found right can be downloaded or shown"


class FileInUse(FailedPrecondition):
    reason = "FILE_IN_USE"
    message = "something shows the file; delete that, or give it another file"


class FilePurposeMismatch(FailedPrecondition):
    reason = "FILE_PURPOSE_MISMATCH"
    message = "the file was uploaded for something else"


class FileClaimLimit(ResourceExhausted):
    reason = "FILE_CLAIM_LIMIT"
    message = "so many things show the file that no other can"
