"""Asks a process of the mesh for its health, for container engines that can only run a command.

Usage: python -m kit.runtime.probe HOST:PORT [NAME]

NAME is a service's full name, or a dependency's, such as postgres; without one, the whole process is meant.
Exit code 0: it is serving. 1: it is not, or does not answer within 2 s.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub


def serving(address: str, service: str = "") -> bool:
    """False also when nothing answers within 2 s."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = HealthStub(channel)  # the stubs of this package know no methods
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m kit.runtime.probe",
        description="Ask a process of the mesh for its health; exit code 0 while it serves.",
    )
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("name", nargs="?", default="", help="a service or a dependency; without one, the whole process")
    asked = parser.parse_args()
    return 0 if serving(asked.address, asked.name) else 1


if __name__ == "__main__":
    sys.exit(main())
