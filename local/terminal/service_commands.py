"""Runs a command of a service with the settings and secrets that the service's processes have in the running mesh."""

import os
from collections.abc import Sequence
from typing import NoReturn

from local.failures import LocalError
from local.layout import Layout
from local.mesh import writers
from local.mesh.components import services
from local.supervision.state import MeshRecord
from local.supervision.supervisor import is_running
from local.terminal import status


def execute(layout: Layout, service: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the command (exec), so that output, exit code and signals are the command's own.

    Raises LocalError if there is no such service, or if the mesh is not running.
    """
    if service not in services.serving():
        raise LocalError(f"There is no service {service}: there are {', '.join(services.serving())}.")
    record = MeshRecord.read(layout.state)
    if record is None or not is_running(layout):
        raise LocalError(f"The mesh in {layout.root} is not up: start it with `python -m local up`.")
    own = status.layout_of(record)
    server = next(each for each in services.components(own, writers.choose(own.settings)) if each.name == service)
    *module, _serve = server.command
    os.chdir(server.directory)
    os.execve(module[0], [*module, *arguments], dict(server.environment))  # noqa: S606 - starts no shell
