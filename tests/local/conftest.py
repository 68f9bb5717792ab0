"""Gives each test its own state directory, ports and command line."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.layout import Layout
from local.mesh.reservation import EDGE_OFFSET, reserved_ports
from local.settings import LocalSettings
from tests.local.processes import CommandLine


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """The layout of a mesh in a temporary folder, with reserved ports."""
    with reserved_ports() as base:
        yield Layout(
            LocalSettings(
                state_dir=tmp_path / "mesh", port=base + EDGE_OFFSET, base_port=base, durable=False, writer="composer"
            )
        )


@pytest.fixture
def local(layout: Layout) -> Iterator[CommandLine]:
    command_line = CommandLine(layout)
    yield command_line
    command_line("down")


@pytest.fixture
def open_to_all(layout: Layout) -> Iterator[CommandLine]:
    """A mesh in a folder that every account can traverse, which Postgres needs if root starts it without setpriv."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        settings = layout.settings.model_copy(update={"state_dir": Path(folder) / "mesh"})
        command_line = CommandLine(Layout(settings))
        yield command_line
        command_line("down")
