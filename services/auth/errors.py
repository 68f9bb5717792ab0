"""The errors of this service. Their reasons are permanent."""

from __future__ import annotations

from kit.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted, Unauthenticated


class InvalidCredentials(Unauthenticated):
    """Every failed password sign-in, whatever was wrong."""

    reason = "INVALID_CREDENTIALS"
    message = "the login or the password is wrong"


class CodeInvalid(Unauthenticated):
    """Wrong, expired, used and unknown codes alike."""

    reason = "CODE_INVALID"
    message = "the code is wrong or has ended; ask for another one"


class RefreshInvalid(Unauthenticated):
    """No token of ours, or of a session that has ended by itself."""

    reason = "REFRESH_INVALID"
    message = "the refresh token is not valid; sign in again"


class RefreshReused(Unauthenticated):
    """A spent token came back: the client or a thief holds an old one."""

    reason = "REFRESH_REUSED"
    message = "the refresh token was used before; sign in again"


class StopTokenInvalid(Unauthenticated):
    """Unknown, used, voided and old ones alike."""

    reason = "STOP_TOKEN_INVALID"
    message = "the token stops no change of an address, or has ended"


class UsernameTaken(AlreadyExists):
    reason = "USERNAME_TAKEN"
    message = "the username belongs to another account; choose another one"


class TooManyUsernameChanges(ResourceExhausted):
    """Whether the name is taken or free: the answers would tell which names others have."""

    reason = "TOO_MANY_USERNAME_CHANGES"
    message = "the username was changed, or tried to be, too often; wait before the next try"


class TooManyUsernames(ResourceExhausted):
    """Waiting does not help: who has proven one address must not learn who has which names."""

    reason = "TOO_MANY_USERNAMES"
    message = "too many usernames were tried that belong to others; complete without one and choose it later"


class EmailTaken(AlreadyExists):
    """Said only to somebody who has proven the address."""

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
    """No further code can help, so none is mailed; waiting does not help either."""

    reason = "CODE_ATTEMPTS_SPENT"
    message = "too many wrong codes were given; register again"


class TooManyRefreshes(ResourceExhausted):
    """Of one session, which is no reason to end it."""

    reason = "TOO_MANY_REFRESHES"
    message = "the session is refreshed too often; wait before the next refresh"


class TooManySignIns(ResourceExhausted):
    reason = "TOO_MANY_SIGN_INS"
    message = "too many failed sign-ins; wait before the next one"


class Overloaded(ResourceExhausted):
    """More passwords are to be checked than the processors can do in time."""

    reason = "OVERLOADED"
    message = "the service is busy; try again"
