"""Where links in mails lead."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit


def opens_here_only(url: str) -> bool:
    """Whether every machine takes the URL's host for itself: an address of loopback, or a name of it (RFC 6761, 6.3)."""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
