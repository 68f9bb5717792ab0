"""Sends one message to a webhook's receiver over HTTPS, to an address that was looked up once and checked."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import httpcore2

from ..model.webhook_urls import WebhookRules, WebhookUrl
from .lookups import Lookups

_MOST_ADDRESSES = 4
"""Addresses of a name that are tried one after the other."""
_LONGEST_PAUSE_SECONDS = 3600.0
_MOST_BYTES = 32 * 1024
"""What is read of an answer at most. Its head alone counts, which HTTP libraries bound, but not how many 1xx answers precede it."""
_BUSY = frozenset({429, 503})


class ReceiverFailed(Exception):
    """The message was not taken, or nobody knows. Holds nothing of what the receiver said, save the status of its answer."""

    def __init__(self, reason: str, *, status: int = 0, seconds: float | None = None) -> None:
        super().__init__(f"{reason} {status}" if status else reason)
        self.reason = reason
        """UPPER_SNAKE, permanent."""
        self.status = status
        """0: there was no answer."""
        self.seconds = seconds
        """The pause that the receiver asks for."""

    @property
    def gone(self) -> bool:
        """Whether the receiver wants no more messages."""
        return self.status == 410


class WebhookSender:
    """One connection for each message: no cookies, redirects, proxies or pools, and nothing of an answer but its status."""

    def __init__(self, rules: WebhookRules, *, ca_file: str, connect_seconds: float, seconds: float) -> None:
        self._rules = rules
        self._tls = ssl.create_default_context(cafile=ca_file or None)
        self._connect_seconds = connect_seconds
        self._seconds = seconds
        self._lookups = Lookups()

    async def look_up(self, url: WebhookUrl, owner: Hashable) -> Sequence[str]:
        """The addresses of the URL's host, each of them allowed. Raises ReceiverFailed and LookupsBusy.

        A name with one refused address is refused whole: it is either an attack or a mistake.
        """
        # With a dot at the end, so that no domain of the resolver's search list is tried.
        name = f"{url.host}." if "." in url.host else url.host
        try:
            found = await self._lookups.addresses(name, url.port, owner)
        except (OSError, UnicodeError):
            raise ReceiverFailed("HOST_UNKNOWN") from None
        if not found or not all(self._rules.allows(address) for address in found):
            raise ReceiverFailed("ADDRESS_REFUSED")
        return [str(address) for address in found[:_MOST_ADDRESSES]]

    async def send(
        self,
        url: WebhookUrl,
        headers: Mapping[str, str],
        body: bytes,
        begins: Callable[[], None] = lambda: None,
        *,
        owner: Hashable,
    ) -> int:
        """Send a message and return the status of a success. `begins` is called before the first byte of it is sent.

        `owner`: who chose the URL. Raises ReceiverFailed and LookupsBusy.
        """
        try:
            async with asyncio.timeout(self._seconds):
                status, pause = await self._post(url, await self.look_up(url, owner), headers, body, begins)
        except TimeoutError:
            raise ReceiverFailed("TIMED_OUT") from None
        if 200 <= status < 300:
            return status
        reason = "GONE" if status == 410 else "REDIRECTED" if 300 <= status < 400 else "STATUS_NOT_SUCCESS"
        raise ReceiverFailed(reason, status=status, seconds=pause)

    async def _post(
        self,
        url: WebhookUrl,
        addresses: Sequence[str],
        headers: Mapping[str, str],
        body: bytes,
        begins: Callable[[], None],
    ) -> tuple[int, float | None]:
        pinned = _Pinned(addresses)

        async def trace(event: str, _info: Mapping[str, Any]) -> None:
            if event == "http11.send_request_headers.started":
                begins()

        step = self._connect_seconds
        origin = httpcore2.Origin(url.scheme.encode(), url.host.encode(), url.port)
        connection = httpcore2.AsyncHTTPConnection(origin, ssl_context=self._tls, network_backend=pinned)
        try:
            async with (
                connection,
                connection.stream(
                    "POST",
                    str(url),
                    headers=[*headers.items(), ("connection", "close")],
                    content=body,
                    # No limit for a read: the limit for the whole covers it.
                    extensions={"timeout": {"connect": step, "write": step}, "trace": trace},
                ) as answer,
            ):
                return answer.status, _pause(answer.status, answer.headers)
        except httpcore2.TimeoutException:
            raise ReceiverFailed("TIMED_OUT") from None
        except httpcore2.ConnectError as error:
            tls = isinstance(error.__cause__, ssl.SSLError)
            raise ReceiverFailed("TLS_FAILED" if tls else "CONNECTION_FAILED") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError):
            raise ReceiverFailed("CONNECTION_FAILED") from None


class _Pinned(httpcore2.AsyncNetworkBackend):
    """Connects to the addresses that were checked, whatever the name stands for by now (DNS rebinding)."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,  # the name, which is not looked up again
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        *others, last = self._addresses
        for address in others:
            try:
                share = None if timeout is None else timeout / len(self._addresses)
                return _Bounded(await self._network.connect_tcp(address, port, share, local_address, socket_options))
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return _Bounded(await self._network.connect_tcp(last, port, timeout, local_address, socket_options))


class _Bounded(httpcore2.AsyncNetworkStream):
    """A connection of which so much is read at most, because a receiver may answer without end."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = _MOST_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left <= 0:
            raise httpcore2.ReadError
        read = await self._stream.read(min(max_bytes, self._left), timeout)
        self._left -= len(read)
        return read

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return _Bounded(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _pause(status: int, headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """The pause that a busy receiver asks for in seconds (RFC 9110, 10.2.3), within bounds."""
    if status not in _BUSY:
        return None
    for name, value in headers:
        if name.lower() == b"retry-after" and value.strip().isdigit() and len(value) < 10:
            return min(max(float(value), 1.0), _LONGEST_PAUSE_SECONDS)
    return None
