"""Health probes in each component's own protocol, because a port may accept connections before the program serves.

Every probe returns when the component serves and raises NotReady with the reason when it does not. Client libraries are
imported inside the functions, because their import is slow and most commands probe nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable

from local.failures import NotReady

Probe = Callable[[], Awaitable[None]]

PROBE_SECONDS = 2.0


def grpc_serving(address: str, service: str = "") -> Probe:
    """Probe by the standard gRPC health protocol; an empty `service` asks for the process as a whole."""

    async def probe() -> None:
        import grpc
        from grpc_health.v1 import health_pb2

        # A proxy that the environment names must not be used for loopback.
        async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            try:
                answer = await check(health_pb2.HealthCheckRequest(service=service), timeout=PROBE_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise NotReady(f"health check on {address} answers {error.code().name}") from None
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
            raise NotReady(f"health check on {address} answers {status}")

    return probe


def postgres_answers(url: str) -> Probe:
    async def probe() -> None:
        import psycopg

        try:
            async with asyncio.timeout(PROBE_SECONDS):
                async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                    await connection.execute("SELECT 1")
        except (psycopg.Error, TimeoutError) as error:
            raise NotReady(f"Postgres does not answer ({str(error).strip() or 'timeout'})") from None

    return probe


def redis_answers(port: int, password: str) -> Probe:
    async def probe() -> None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(f"AUTH {password}\r\nPING\r\n".encode())
                    await writer.drain()
                    answers = [await reader.readline(), await reader.readline()]
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise NotReady(f"Redis does not answer ({error or 'timeout'})") from None
        # While Redis loads its data, it answers PING with an error.
        if answers != [b"+OK\r\n", b"+PONG\r\n"]:
            raise NotReady(f"Redis answers {b' '.join(answers).decode(errors='replace').strip()}")

    return probe


def smtp_greets(port: int) -> Probe:
    async def probe() -> None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    greeting = await reader.readline()
                    writer.write(b"QUIT\r\n")
                    await writer.drain()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise NotReady(f"the mail sink does not answer ({error or 'timeout'})") from None
        if not greeting.startswith(b"220"):
            raise NotReady(f"the mail sink greets with {greeting!r}")

    return probe


def http_answers(url: str) -> Probe:
    """Probe for status 200; Envoy's `/ready` answers it only once every listener and cluster is initialised."""

    async def probe() -> None:
        import httpx2

        try:
            async with httpx2.AsyncClient(trust_env=False, timeout=PROBE_SECONDS) as client:
                answer = await client.get(url)
        except httpx2.HTTPError as error:
            raise NotReady(f"{url} does not answer ({error or 'timeout'})") from None
        if answer.status_code != 200:
            raise NotReady(f"{url} answers {answer.status_code}")

    return probe
