"""A process that serves gRPC health on a port, and appends its name to a file on SIGTERM."""

import asyncio
import signal
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse


def note(path: Path, name: str) -> None:
    with path.open("a") as file:
        file.write(f"{name}\n")


async def main(port: str, status: str, name: str, stopped_file: str) -> None:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    await servicer.set("", HealthCheckResponse.ServingStatus.Value(status))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await server.start()
    print(f"{name} serves", flush=True)
    await stopped.wait()
    note(Path(stopped_file), name)
    await server.stop(None)


asyncio.run(main(*sys.argv[1:]))
