"""Where webhooks may lead: the form of their URLs and the networks that are refused (OWASP, Server-Side Request Forgery).

A URL that somebody else chose makes this process speak to whatever it names, from inside of the network. So names alone are
taken and never addresses, and what a name stands for is checked each time, after it was looked up and before it is connected to.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

LONGEST_URL = 2000

_LABEL = r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?"
# A last label that is a number is the end of an IPv4 address, for some parsers also in octal or hexadecimal (WHATWG URL).
_HOST = re.compile(rf"(?=.{{1,253}}\Z)({_LABEL}\.)*(?![0-9]+\Z|0x[0-9a-f]*\Z){_LABEL}")
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?P<fragment>#.*)?",
    re.DOTALL,
)
_TARGET = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_PORTS = {"https": 443, "http": 80}


class NotAWebhookUrl(ValueError):
    """Says in words what is wrong with the URL; `reason` is permanent."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class WebhookUrl:
    """A URL whose form was checked."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query."""

    @property
    def secure(self) -> bool:
        return self.scheme == "https"

    def __str__(self) -> str:
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}{self.target}"


@dataclass(frozen=True, slots=True)
class WebhookRules:
    """What this deployment allows."""

    ports: Collection[int]
    local: bool = False
    """Allow http, any port and the machine's loopback addresses besides: for development."""
    refused: Collection[IPv4Network | IPv6Network] = ()
    """Networks that are refused besides those that are not public."""

    def read(self, text: str) -> WebhookUrl:
        """The URL in its one form. Raises NotAWebhookUrl."""
        found = _URL.fullmatch(text)
        if not found or len(text) > LONGEST_URL:
            raise NotAWebhookUrl("URL_INVALID", f"must be a URL of at most {LONGEST_URL} characters")
        scheme = found["scheme"].lower()
        if scheme != "https" and not (self.local and scheme == "http"):
            raise NotAWebhookUrl("URL_NOT_HTTPS", "must begin with https://")
        if found["fragment"] is not None:
            raise NotAWebhookUrl("URL_INVALID", "must have no fragment (#)")
        if "@" in found["authority"]:
            raise NotAWebhookUrl("URL_CREDENTIALS", "must have no user name and no password")
        host, port = self._place(found["authority"].lower(), scheme)
        target = (found["path"] or "/") + (found["query"] or "")
        if not _TARGET.fullmatch(target):
            raise NotAWebhookUrl("URL_INVALID", "must have its special characters percent-encoded")
        return WebhookUrl(scheme, host, port, target)

    def _place(self, authority: str, scheme: str) -> tuple[str, int]:
        host, colon, digits = authority.partition(":")
        if not _HOST.fullmatch(host) or not (self.local or "." in host):
            words = "must name a host by its full name in ASCII, such as hooks.example.com, and by no address"
            raise NotAWebhookUrl("URL_HOST_INVALID", words)
        if colon and not re.fullmatch("[1-9][0-9]{0,4}", digits):
            raise NotAWebhookUrl("URL_INVALID", "must have a port between 1 and 65535, or none")
        port = int(digits) if colon else _PORTS[scheme]
        if port > 65535 or not (self.local or port in self.ports):
            words = " or ".join(map(str, sorted(self.ports)))
            raise NotAWebhookUrl("URL_PORT_REFUSED", f"must have the port {words}")
        return host, port

    def allows(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether a webhook may be connected to the address."""
        if self.local and (address in _LOOPBACK_4 or address in _LOOPBACK_6):
            return True
        if any(address in network for network in self.refused):
            return False
        if isinstance(address, IPv4Address):
            return not any(address in network for network in _REFUSED_4)
        # The one block of public IPv6 addresses. Mapped IPv4 addresses, NAT64, site-local and others are outside of it.
        tunnelled = (int(address) >> 32) & 0xFDFF_FFFF == _ISATAP
        return address in _GLOBAL_6 and not tunnelled and not any(address in network for network in _REFUSED_6)


_ISATAP = 0x5EFE
"""In the middle of an address that holds an IPv4 address at its end, whatever its network (RFC 5214, 6.1). One bit may differ."""
_LOOPBACK_4, _LOOPBACK_6 = ip_network("127.0.0.0/8"), ip_network("::1/128")
_GLOBAL_6 = ip_network("2000::/3")
_REFUSED_4 = tuple(
    map(
        ip_network,
        (
            # IANA IPv4 Special-Purpose Address Registry.
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by customers of a provider (CGNAT)
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, and the metadata of most clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # IETF protocols
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            # A public address at which machines in Azure reach their host.
            "168.63.129.16/32",
        ),
    )
)
_REFUSED_6 = tuple(
    map(
        ip_network,
        (
            # IANA IPv6 Special-Purpose Address Registry, as far as it is in 2000::/3.
            "2001::/23",  # IETF protocols: Teredo, ORCHID, benchmarks and others
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which holds an IPv4 address
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
