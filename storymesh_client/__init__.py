"""Calls a Storymesh from Python: `Storymesh` keeps a channel and a session, `storymesh` is the same for a terminal.

Knows the contracts and grpc, and nothing of the services.
"""

from .client import DEFAULT_TARGET, Storymesh
from .errors import StorymeshError, Violation
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
    "Violation",
]
