"""The supervisor with minimal children: order, restarts, and its messages when a child does not start."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from local.failures import LocalError
from local.layout import Layout
from local.supervision import control
from local.supervision.component import Component, Mesh
from local.supervision.health import grpc_serving
from local.supervision.state import ComponentState
from local.supervision.supervisor import Supervisor, locked
from tests.local.processes import Supervised, killed, supervised

Serving = Callable[..., Component]

SERVER = str(Path(__file__).with_name("health_server.py"))


@pytest.fixture
def serving(layout: Layout, tmp_path: Path) -> Serving:
    """A function that makes a component which serves gRPC health on the port of the named one."""

    def make(name: str, *, needs: tuple[str, ...] = (), status: str = "SERVING") -> Component:
        port = layout.port(name)
        return Component(
            name=name,
            command=(sys.executable, SERVER, str(port), status, name, str(tmp_path / "stopped")),
            needs=needs,
            ports=layout.ports(name),
            probe=grpc_serving(f"127.0.0.1:{port}"),
        )

    return make


def shell(script: str, *, name: str = "auth", needs: tuple[str, ...] = ()) -> Component:
    """A component that runs a script and never serves."""
    return Component(name=name, command=("/bin/sh", "-c", script), needs=needs, probe=grpc_serving("127.0.0.1:9"))


async def test_components_start_in_order_of_need_and_stop_in_reverse(
    layout: Layout, tmp_path: Path, serving: Serving
) -> None:
    job = Component(name="auth-migrate", command=("/bin/sh", "-c", "exit 0"), once=True)
    components = [serving("story", needs=("auth",)), serving("auth", needs=("auth-migrate",)), job]
    async with supervised(layout, components) as mesh:
        healthy = [line.split()[0] for line in mesh.said if " is " in line]
        assert healthy[:3] == ["auth-migrate", "auth", "story"]
        assert mesh.record("auth-migrate")[0] is ComponentState.DONE
    assert (tmp_path / "stopped").read_text().split() == ["story", "auth"]


async def test_a_crashed_child_is_restarted_at_once_and_that_is_said(layout: Layout, serving: Serving) -> None:
    async with supervised(layout, [serving("auth")]) as mesh:
        _, first, _ = mesh.record("auth")
        killed(first)
        await mesh.until(lambda: mesh.record("auth")[0] is ComponentState.HEALTHY and mesh.record("auth")[1] != first)
        assert mesh.record("auth")[2] == 1
        assert "auth ended by itself (killed by SIGKILL); restart 1 follows at once" in mesh.said


def restarted(mesh: Supervised, times: int) -> bool:
    return mesh.record("auth")[2] == times


async def test_a_child_that_keeps_crashing_is_restarted_after_growing_pauses(layout: Layout, serving: Serving) -> None:
    async with supervised(layout, [serving("auth")]) as mesh:
        for restart in (1, 2):
            await mesh.until(lambda: mesh.record("auth")[0] is ComponentState.HEALTHY)
            killed(mesh.record("auth")[1])
            await mesh.until(partial(restarted, mesh, restart))
        assert [line.rpartition("follows ")[2] for line in mesh.said if "follows" in line] == ["at once", "in 0.5 s"]


async def test_a_child_that_never_starts_ends_the_mesh_with_a_sentence_and_its_log(layout: Layout) -> None:
    with pytest.raises(LocalError, match=r"auth does not start \(exit code 3\).*auth\.log:\n.*the key is too short"):
        async with supervised(layout, [shell("echo the key is too short; exit 3")]):
            pass
    assert layout.log("auth").read_text().count("too short") == 3


async def test_a_child_that_names_its_settings_as_the_cause_is_not_tried_again(layout: Layout) -> None:
    with pytest.raises(LocalError, match="auth does not start"):
        async with supervised(layout, [shell("echo STORYMESH_MESH_KEY is missing; exit 78")]):
            pass
    assert layout.log("auth").read_text() == "STORYMESH_MESH_KEY is missing\n"


async def test_a_child_that_is_never_healthy_ends_the_mesh_with_what_its_probe_says(
    layout: Layout, serving: Serving
) -> None:
    impatient = Layout(layout.settings.model_copy(update={"start_seconds": 2.0}))
    with pytest.raises(LocalError, match=r"not healthy after 2 s: health check on .* answers NOT_SERVING"):
        async with supervised(impatient, [serving("auth", status="NOT_SERVING")]):
            pass


async def test_a_failed_start_takes_the_others_down(layout: Layout, tmp_path: Path, serving: Serving) -> None:
    broken = shell("exit 1", name="story", needs=("auth",))
    with pytest.raises(LocalError, match="story does not start"):
        async with supervised(layout, [serving("auth"), broken]):
            pass
    assert (tmp_path / "stopped").read_text() == "auth\n"


async def test_another_writer_restarts_only_components_that_depend_on_the_writer(
    layout: Layout, serving: Serving
) -> None:
    auth, story = serving("auth"), serving("story")

    def written_with(writer: str) -> Mesh:
        return Mesh([auth, replace(story, environment={"STORYMESH_WRITER": writer})], (), writer)

    async with supervised(layout, written_with("composer").components, written_with) as mesh:
        _, keeps, _ = mesh.record("auth")
        _, former, _ = mesh.record("story")
        await asyncio.to_thread(control.send, layout.control_socket, control.Order("write-with", "local"))
        _, pid, _ = mesh.record("story")
        assert pid != former
        assert psutil.Process(pid).environ()["STORYMESH_WRITER"] == "local"
        assert mesh.record("auth")[1] == keeps
        assert mesh.settings()["STORYMESH_WRITER"] == "local"


async def test_a_writer_that_does_not_start_leaves_the_former_one_writing(layout: Layout, serving: Serving) -> None:
    story = serving("story")
    broken = replace(story, command=("/bin/sh", "-c", "echo it has no key; exit 78"), environment={"WRITER": "openai"})
    meshes = {"openai": Mesh([broken], (), "openai")}
    async with supervised(layout, [story], meshes.__getitem__) as mesh:
        with pytest.raises(LocalError, match=r"story does not start \(exit code 78\)[\s\S]*it has no key"):
            await asyncio.to_thread(control.send, layout.control_socket, control.Order("write-with", "openai"))
        assert mesh.record("story")[0] is ComponentState.HEALTHY
        assert mesh.settings()["STORYMESH_WRITER"] == layout.settings.writer


async def test_a_child_that_ignores_the_request_to_stop_is_killed_after_its_drain(layout: Layout) -> None:
    stubborn = Component(
        name="auth", command=("/bin/sh", "-c", "trap '' TERM INT; while :; do sleep 0.1; done"), drain_seconds=0.5
    )
    async with supervised(layout, [stubborn]) as mesh:
        pid = mesh.record("auth")[1]
    assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_a_full_disk_is_refused_with_a_sentence(layout: Layout) -> None:
    layout.create()
    supervisor = Supervisor([], layout, say=print, free_space=lambda _: 100_000_000)
    with locked(layout), pytest.raises(LocalError, match=r"has 100 MB free and the mesh wants 512 MB: free some space"):
        await supervisor.run(asyncio.Event())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
async def test_a_child_that_meets_a_full_disk_is_reported_as_such(layout: Layout) -> None:
    with pytest.raises(LocalError, match=r"cannot start because the disk that holds .* is full: free some space"):
        async with supervised(layout, [shell("cat /etc/hosts > /dev/full")]):
            pass


async def test_a_program_that_does_not_exist_is_named(layout: Layout) -> None:
    with pytest.raises(LocalError, match="/nonexistent/program cannot be run: there is no such program"):
        async with supervised(layout, [Component(name="auth", command=("/nonexistent/program",))]):
            pass
