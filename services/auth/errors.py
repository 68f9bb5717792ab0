"""The errors of this service. Their reasons are permanent."""

from __future__ import annotations

from kit.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted, Unauthenticated


class InvalidCredentials(Unauthenticated):
    """The one answer to every failed password sign-in, so that it does not tell what was wrong."""

    reason = "INVALID_CREDENTIALS"
    message = "the login or the password is wrong"


class CodeInvalid(Unauthenticated):
    """The one answer to wrong, expired, used and unknown codes."""

    reason = "CODE_INVALID"
    message = "the code is wrong or has ended; ask for another one"


class RefreshInvalid(Unauthenticated):
    """The token was not made by this service, or its session has expired."""

    reason = "REFRESH_INVALID"
    message = "the refresh token is not valid; sign in again"


class RefreshReused(Unauthenticated):
    """A spent refresh token was presented: the client or a thief holds an old one."""

    reason = "REFRESH_REUSED"
    message = "the refresh token was used before; sign in again"


class StopTokenInvalid(Unauthenticated):
    """The one answer to unknown, used, voided and expired tokens."""

    reason = "STOP_TOKEN_INVALID"
    message = "the token stops no change of an address, or has ended"


class UsernameTaken(AlreadyExists):
    reason = "USERNAME_TAKEN"
    message = "the username belongs to another account; choose another one"


class TooManyUsernameChanges(ResourceExhausted):
    """Answers whether the name is taken or free; otherwise the answers would tell which names others have."""

    reason = "TOO_MANY_USERNAME_CHANGES"
    message = "the username was changed, or tried to be, too often; wait before the next try"


class TooManyUsernames(ResourceExhausted):
    """Permanent: a person who has proven one address must not learn which usernames exist by trying."""

    reason = "TOO_MANY_USERNAMES"
    message = "too many usernames were tried that belong to others; complete without one and choose it later"


class EmailTaken(AlreadyExists):
    """Answered only to a person who has proven the address."""

    reason = "EMAIL_TAKEN"
    message = "the address belongs to another account"


class ReauthenticationRequired(FailedPrecondition):
    reason = "REAUTH_REQUIRED"
    message = "give the password, or a code that was mailed to the account's address"


class SessionNotFound(NotFound):
    reason = "SESSION_NOT_FOUND"
    message = "there is no such session"


class KeyNotFound(NotFound):
    reason = "KEY_NOT_FOUND"
    message = "there is no such key"


class AccountNotFound(NotFound):
    reason = "ACCOUNT_NOT_FOUND"
    message = "there is no such account"


class TooManyCodes(ResourceExhausted):
    reason = "TOO_MANY_CODES"
    message = "too many codes were asked for; wait before asking for another one"


class CodeAttemptsSpent(ResourceExhausted):
    """The challenge is exhausted: no further code is mailed for it, and waiting does not help."""

    reason = "CODE_ATTEMPTS_SPENT"
    message = "too many wrong codes were given; register again"


class TooManyRefreshes(ResourceExhausted):
    """Limit on refreshes of one session. The session goes on."""

    reason = "TOO_MANY_REFRESHES"
    message = "the session is refreshed too often; wait before the next refresh"


class TooManySignIns(ResourceExhausted):
    reason = "TOO_MANY_SIGN_INS"
    message = "too many failed sign-ins; wait before the next one"


class Overloaded(ResourceExhausted):
    """Back-pressure: more passwords wait to be hashed than the processors can hash in time."""

    reason = "OVERLOADED"
    message = "the service is busy; try again"
