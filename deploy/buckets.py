"""Buckets of services in our own object store, SeaweedFS, locally and in containers: who may use it, and its buckets.

A service that needs the store gets one bucket and a key for it alone, as it gets one database and one role. An operator's key,
which no service gets, makes the buckets. On another S3 server its operators do the same.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from hashlib import md5
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener
from xml.sax.saxutils import escape

from kit.data.presigning import Presigner
from kit.runtime.clock import system_clock
from mesh.manifest import OBJECT_STORE, Manifest

OPERATOR = "operator"
REGION = "us-east-1"
"""SeaweedFS takes any; this is what other programs assume."""

KEYS, SECURITY = "keys.json", "security.toml"
CERTIFICATE, CERTIFICATE_KEY = "certificate.pem", "certificate-key.pem"
SECRET = "s3_secret_key"
"""The setting that holds a service's secret."""

OPTIONS = {
    # A list of peers, of itself alone, would begin with an election.
    "master.peers": "none",
    "master.telemetry": "false",
    "master.volumeSizeLimitMB": "256",
    # As many volumes as there is space for.
    "volume.max": "0",
    # The master's and the filer's HTTP, which ask for no key.
    "disableHttp": "true",
    "filer.disableHttp": "true",
    # No page has this origin. With an empty list, every page of every site might send signed requests.
    "s3.allowedOrigins": "https://none.invalid",
    "s3.iam": "false",
    "s3.port.iceberg": "0",
    "s3.port.lance": "0",
    "s3.autoCreateBucket": "false",
    "s3.allowDeleteBucketNotEmpty": "false",
}
"""Options of `weed server` that do not depend on where it runs."""

_SECONDS = 5.0
_VALID = timedelta(seconds=60)
_CERTIFIED = timedelta(days=3650)
_SKEW = timedelta(days=1)
_TOKENS_SECONDS = 600
"""How long the store's parts trust each other's tokens, instead of 10 s: a slow upload takes longer."""

_EXPOSED = ("ETag", "x-amz-checksum-sha256", "Content-Range", "Accept-Ranges")
_DIRECT = build_opener(ProxyHandler({}))
"""Without the proxies that the environment may name."""


class BucketsFailed(Exception):
    """The store refuses what the operator asks, or does not answer."""


def holders(services: Mapping[str, Manifest]) -> tuple[str, ...]:
    """Names of the services that need the store."""
    return tuple(name for name, manifest in services.items() if OBJECT_STORE in manifest.needs)


def bucket_of(service: str) -> str:
    return f"storymesh-{service}"


def settings_of(service: str, endpoint: str, public_endpoint: str) -> dict[str, str]:
    """The service's settings for our store, except its secret."""
    return {
        "S3_ENDPOINT": endpoint,
        "S3_PUBLIC_ENDPOINT": public_endpoint,
        "S3_REGION": REGION,
        "S3_BUCKET": bucket_of(service),
        "S3_ACCESS_KEY": access_key_of(service),
    }


def access_key_of(name: str) -> str:
    """The public half of a key."""
    return f"storymesh-{name}"


def identities(services: Iterable[str], secret_of: Callable[[str], str]) -> str:
    """SeaweedFS' list of identities. It holds the secrets, because the server must compute signatures."""
    rights = {OPERATOR: ["Admin"]} | {
        service: [f"{action}:{bucket_of(service)}" for action in ("Read", "Write", "List")] for service in services
    }
    listed = [
        {
            "name": name,
            "credentials": [{"accessKey": access_key_of(name), "secretKey": secret_of(name)}],
            "actions": actions,
        }
        for name, actions in rights.items()
    ]
    return json.dumps({"identities": listed}, indent=1)


def security(folder: str) -> dict[str, str]:
    """The files by which SeaweedFS' parts know each other, with new keys; `folder` is where the server finds them.

    Without them, its inner ports serve anybody.
    """
    certificate, key = _certificate()
    tokens = "".join(
        f'[{section}]\nkey = "{secrets.token_urlsafe(32)}"\nexpires_after_seconds = {_TOKENS_SECONDS}\n'
        for section in ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    )
    parts = "".join(
        f'[grpc.{part}]\ncert = "{folder}/{CERTIFICATE}"\nkey = "{folder}/{CERTIFICATE_KEY}"\n'
        for part in ("master", "volume", "filer", "s3", "client")
    )
    text = f'{tokens}[grpc]\nca = "{folder}/{CERTIFICATE}"\n{parts}'
    return {SECURITY: text, CERTIFICATE: certificate, CERTIFICATE_KEY: key}


def _certificate() -> tuple[str, str]:
    """A certificate that signs itself, and its key, in PEM form: whoever has the key is one of the store's parts."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "storymesh object store")])
    now = system_clock()
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _CERTIFIED)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def listed(origins: str) -> list[str]:
    """The origins of a setting, which are separated by commas."""
    return [each.strip() for each in origins.split(",") if each.strip()]


async def provision(endpoint: str, secret: str, services: Iterable[str], *, origins: Sequence[str]) -> None:
    """Make the missing buckets, and let pages on these origins use signed requests. Raises BucketsFailed.

    `secret` is the operator's.
    """
    for service in services:
        operator = Presigner(
            endpoint, bucket_of(service), region=REGION, access_key=access_key_of(OPERATOR), secret_key=secret
        )
        # One that exists is ours: nobody else may make buckets.
        await _ask(operator, "PUT", allowed=(200, 409))
        if origins:
            await _ask(operator, "PUT", allowed=(200,), query={"cors": ""}, body=_cors(origins))
        else:
            await _ask(operator, "DELETE", allowed=(200, 204, 404), query={"cors": ""})


async def answers(endpoint: str, secret: str) -> None:
    """Whether the store serves and knows the operator's key. Raises BucketsFailed."""
    nothing = Presigner(
        endpoint, bucket_of(OPERATOR), region=REGION, access_key=access_key_of(OPERATOR), secret_key=secret
    )
    await _ask(nothing, "HEAD", allowed=(200, 404))


async def _ask(
    operator: Presigner,
    method: str,
    *,
    allowed: Sequence[int],
    query: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> None:
    digest = {} if body is None else {"Content-MD5": b64encode(md5(body).digest()).decode()}  # noqa: S324  # the protocol's
    signed = operator.sign(method, "", at=system_clock(), valid_for=_VALID, headers=digest, query=query)
    request = Request(signed.url, data=body, headers=dict(signed.headers), method=method)  # noqa: S310  # our own endpoint
    try:
        status, text = await asyncio.to_thread(_sent, request)
    except OSError as error:
        raise BucketsFailed(f"the object store does not answer ({error})") from None
    if status not in allowed:
        raise BucketsFailed(f"the object store answers {status}: {text}")


def _sent(request: Request) -> tuple[int, str]:
    try:
        with _DIRECT.open(request, timeout=_SECONDS) as answer:
            return answer.status, ""
    except HTTPError as error:
        with error:
            return error.code, error.read(1000).decode(errors="replace")


def _cors(origins: Sequence[str]) -> bytes:
    allowed = "".join(f"<AllowedOrigin>{escape(origin)}</AllowedOrigin>" for origin in origins)
    exposed = "".join(f"<ExposeHeader>{name}</ExposeHeader>" for name in _EXPOSED)
    methods = "".join(f"<AllowedMethod>{name}</AllowedMethod>" for name in ("GET", "HEAD", "PUT"))
    rule = f"{allowed}{methods}<AllowedHeader>*</AllowedHeader>{exposed}<MaxAgeSeconds>3600</MaxAgeSeconds>"
    return f"<CORSConfiguration><CORSRule>{rule}</CORSRule></CORSConfiguration>".encode()
