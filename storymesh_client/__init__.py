"""The client of a Storymesh: the class `Storymesh` keeps a channel and a session, the command `storymesh` uses it at a terminal.

It depends on the contracts and grpc alone; bytes of files pass by the standard library's HTTP.
"""

from .client import DEFAULT_TARGET, Storymesh
from .errors import StorymeshError, TransferFailed, Violation
from .tokens import FileTokens, MemoryTokens, TokenFileError, Tokens, TokenStore

__all__ = [
    "DEFAULT_TARGET",
    "FileTokens",
    "MemoryTokens",
    "Storymesh",
    "StorymeshError",
    "TokenFileError",
    "TokenStore",
    "Tokens",
    "TransferFailed",
    "Violation",
]
