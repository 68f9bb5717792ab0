"""Presigned requests to an S3 server (AWS Signature Version 4, query form).

Signing is arithmetic: nothing is asked of the server. Botocore takes 310 µs for a URL; a page of a feed needs a hundred of them.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from hashlib import sha256
from urllib.parse import quote, urlsplit

LONGEST_VALID = timedelta(days=7)
"""The protocol's own bound."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request that its holder may send until `expires_at`, with exactly these headers."""

    method: str
    url: str = field(repr=False)
    """A secret until it expires: whoever has it may do what it says."""

    headers: Mapping[str, str]
    expires_at: datetime


class Presigner:
    """Signs requests to one bucket for one access key."""

    def __init__(
        self, endpoint: str, bucket: str, *, region: str, access_key: str, secret_key: str, virtual: bool = False
    ) -> None:
        """`endpoint` is `http://host:port` or https, as callers reach it: its host is signed.

        `virtual` puts the bucket into the host name, as Amazon wants it, and not into the path.
        """
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
        if ":" in host:
            host = f"[{host}]"
        if virtual:
            host = f"{bucket}.{host}"
        if parts.port is not None and parts.port != _DEFAULT_PORTS.get(parts.scheme):
            host = f"{host}:{parts.port}"
        self._host = host
        self._origin = f"{parts.scheme}://{host}"
        self._folder = "" if virtual else f"/{bucket}"
        self._region = region
        self._access_key = access_key
        self._secret_key = secret_key
        self._day: date | None = None
        self._day_key = b""

    def sign(
        self,
        method: str,
        key: str,
        *,
        at: datetime,
        valid_for: timedelta,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> SignedRequest:
        """Sign a request for an object, or for the bucket itself if `key` is empty. `at` is the present time, in UTC.

        The request is refused without any of `headers`, with another value of one, with a further query parameter, and once it has
        expired. Raises ValueError for a time that the protocol does not allow.
        """
        if not timedelta(seconds=1) <= valid_for <= LONGEST_VALID:
            raise ValueError(f"a signature is valid for one second to seven days, not {valid_for}")
        at = at.replace(microsecond=0)
        signed = {name.lower(): " ".join(value.split()) for name, value in (headers or {}).items()} | {
            "host": self._host
        }
        names = ";".join(sorted(signed))
        scope = f"{at:%Y%m%d}/{self._region}/s3/aws4_request"
        parameters = {
            **(query or {}),
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{self._access_key}/{scope}",
            "X-Amz-Date": f"{at:%Y%m%dT%H%M%SZ}",
            "X-Amz-Expires": str(int(valid_for.total_seconds())),
            "X-Amz-SignedHeaders": names,
        }
        # Sorted after they are encoded, as the standard says.
        pairs = sorted((_encoded(name), _encoded(value)) for name, value in parameters.items())
        encoded = "&".join(f"{name}={value}" for name, value in pairs)
        path = f"{self._folder}/{quote(key, safe='/-_.~')}" if key else self._folder or "/"
        lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        request = f"{method}\n{path}\n{encoded}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
        text = f"AWS4-HMAC-SHA256\n{at:%Y%m%dT%H%M%SZ}\n{scope}\n{sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._key_of(at.date()), text.encode(), "sha256").hex()
        url = f"{self._origin}{path}?{encoded}&X-Amz-Signature={signature}"
        return SignedRequest(method, url, dict(headers or {}), at + valid_for)

    def _key_of(self, day: date) -> bytes:
        """The day's signing key, kept because it takes four of the five digests of a signature."""
        if self._day != day:
            key = f"AWS4{self._secret_key}".encode()
            for part in (f"{day:%Y%m%d}", self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._day, self._day_key = day, key
        return self._day_key


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")
