"""Unusual places in which a mesh must run, and the messages where it cannot."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from local import folders
from local.failures import LocalError
from local.layout import Layout
from local.mesh.reservation import EDGE_OFFSET, reserved_ports
from local.settings import REPOSITORY, LocalSettings, inherited_environment
from tests.local.mesh.checkouts import copy_code, copy_installed, write

ODD = Path("eine Straße — 日本", "$HOME #1 & 'co' [a]*? 100% (\"q\") `b` \\c;|", "l" * 80, "ü" * 40)
"""A path of more than 200 bytes, too long for a socket and a script's first line, with special characters of shells and Redis."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has another account to run Postgres as")


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that only this user can enter, such as root's home on most machines."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o700)
        yield Path(folder)


def variables(layout: Layout, **others: str) -> dict[str, str]:
    """The environment of a minimal shell, without locale and home, with this mesh's ports."""
    mesh = {f"STORYMESH_{name}": str(getattr(layout.settings, name.lower())) for name in ("PORT", "BASE_PORT")}
    return {"PATH": os.environ["PATH"], **mesh, **others}


def run(command: list[str], place: Path, environment: Mapping[str, str], *, expect: int = 0) -> str:
    ended = subprocess.run(
        command,
        cwd=place,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=240,
        check=False,
    )
    assert ended.returncode == expect, ended.stdout
    return ended.stdout


def living_in(place: Path) -> list[list[str]]:
    """Command lines of processes whose working directory or program is in `place`."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if any(str(place) in part for part in [process.cwd(), *command]):
                found.append(command)
        except psutil.Error:
            continue
    return found


@dataclass(frozen=True)
class Newcomer:
    """Runs make in an unusual folder."""

    code: Path
    environment: Mapping[str, str]

    def make(self, *words: str, expect: int = 0, **others: str) -> str:
        return run(["make", *words], self.code, {**self.environment, **others}, expect=expect)


@pytest.fixture(scope="module")
def newcomer() -> Iterator[Newcomer]:
    """A checkout in a private folder with spaces, non-ASCII letters and a long path; TMPDIR is in it too."""
    with reserved_ports() as base, tempfile.TemporaryDirectory() as folder:
        code = copy_code(Path(folder) / ODD / "story mesh")
        copy_installed(code / ".venv", code)
        (code / "tmp").mkdir()
        layout = Layout(LocalSettings(port=base + EDGE_OFFSET, base_port=base))
        person = Newcomer(code, variables(layout, TMPDIR=str(code / "tmp")))
        yield person
        person.make("down")
        assert living_in(code) == []


@pytest.mark.timeout(300)
def test_the_demo_runs_in_a_closed_folder_with_blanks_foreign_letters_and_a_long_path(newcomer: Newcomer) -> None:
    shown = newcomer.make("demo", "WRITER=composer")
    assert "was written by composer" in shown
    assert "All of it happened." in shown
    assert "installing" not in shown
    # The test proves nothing unless the demo ran this copy's code.
    assert f"{newcomer.code}/.venv/bin/python" in {command[0] for command in living_in(newcomer.code)}


@pytest.mark.timeout(300)
def test_the_demo_is_written_by_the_writer_that_is_asked_for_also_by_a_mesh_that_is_up(newcomer: Newcomer) -> None:
    newcomer.make("up", STORYMESH_WRITER="composer")
    if not (newcomer.code / ".venv/.local-llm").exists():
        pytest.skip("the local model is not installed: make local-llm")
    shown = newcomer.make("demo")
    assert "The writer is composer: the story service and its workers start anew with local." in shown
    assert "was written by local" in shown


@pytest.mark.timeout(300)
def test_what_a_mesh_that_is_up_does_not_do_as_asked_is_refused(newcomer: Newcomer) -> None:
    newcomer.make("up")
    port = newcomer.environment["STORYMESH_PORT"]
    refused = newcomer.make("up", STORYMESH_PORT="22", STORYMESH_LOG_LEVEL="DEBUG", expect=2)
    assert f"STORYMESH_PORT is {port} instead of 22; STORYMESH_LOG_LEVEL is not set. End it with `make down`" in refused
    assert "code has changed" not in newcomer.make("up")
    write(newcomer.code / "services/new.py", "")
    assert "The code has changed since it was started" in newcomer.make("up")
    edge = newcomer.code / "envoy/edge.yaml"
    write(edge, edge.read_text() + "# mine\n")
    assert f"{edge} has changed since Envoy was started" in newcomer.make("up", expect=2)
    assert "envoy: restart done." in run(
        [".venv/bin/python", "-m", "local", "restart", "envoy"], newcomer.code, newcomer.environment
    )
    assert "The mesh is already up." in newcomer.make("up")


@as_root
def test_postgres_runs_as_another_account_without_a_right_of_roots(closed: Path, layout: Layout) -> None:
    code = copy_code(closed / "storymesh")
    copy_installed(code / ".venv", code)
    environment = variables(layout)
    local = [str(code / ".venv/bin/python"), "-m", "local"]
    try:
        run([*local, "up", "--only", "postgres"], code, environment)
        data = code / ".local/data/postgres"
        server = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
        assert os.path.samefile(server.cwd(), data)
        assert 0 not in server.uids()
        status = Path(f"/proc/{server.pid}/status").read_text().splitlines()
        rights = {line.split(":\t")[0]: int(line.split(":\t")[1], 16) for line in status if line.startswith("Cap")}
        assert {rights[kind] for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    finally:
        run([*local, "down"], code, environment)
    assert living_in(code) == []


@as_root
def test_a_root_that_may_become_nobody_else_is_told_what_to_do(closed: Path, layout: Layout) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv to take a right from root")
    up = ["setpriv", "--bounding-set", "-setuid,-setgid", sys.executable, "-m", "local", "up", "--only", "postgres"]
    shown = run(up, Path.cwd(), variables(layout, STORYMESH_STATE_DIR=str(closed / "mesh")), expect=1)
    assert "Postgres does not run as root, and root may not become" in shown
    assert "run the mesh as an ordinary user" in shown
    assert len(shown.splitlines()) == 1


def read_only(folder: Path) -> list[str]:
    """Makes the folder read-only, and returns the beginning of commands that see it so."""
    if os.geteuid() != 0:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222)
        return []
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"'
    begin = ["unshare", "--mount", "sh", "-c", script, str(folder)]
    if subprocess.run([*begin, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("root may write everywhere, and may not mount a folder read-only here")
    return begin


def test_a_checkout_that_cannot_be_written_runs_with_its_state_elsewhere(closed: Path, layout: Layout) -> None:
    code, state = copy_code(closed / "read only"), closed / "the state"
    copy_installed(state / "venv", code)
    begin = read_only(code)
    environment = variables(layout, STORYMESH_STATE_DIR=str(state))
    before = sorted(code.rglob("*"))
    assert "The mesh is down." in run([*begin, "make", "status"], code, environment, expect=2)
    local = [*begin, str(state / "venv/bin/python"), "-m", "local"]
    try:
        run([*local, "up", "--only", "postgres", "--only", "redis", "--only", "mail"], code, environment)
        assert (state / "data/postgres/PG_VERSION").exists()
    finally:
        run([*begin, "make", "down"], code, environment)
    assert living_in(state) == []
    assert sorted(code.rglob("*")) == before


def test_a_checkout_that_cannot_be_written_without_a_state_elsewhere_is_told_what_to_do(
    closed: Path, layout: Layout
) -> None:
    code = copy_code(closed / "read only")
    begin = read_only(code)
    shown = run([*begin, "make", "up"], code, variables(layout), expect=2)
    assert ".venv cannot be written: set STORYMESH_STATE_DIR to a folder that can" in shown
    up = [*begin, sys.executable, "-m", "local", "up", "--only", "redis"]
    shown = run(up, code, variables(layout), expect=1)
    assert "or move the mesh with STORYMESH_STATE_DIR" in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("exit 1", "Storymesh needs Python 3.11 or newer"),
        ('[ "$1" != -m ]', "install Python's venv"),
    ],
)
def test_a_python_that_will_not_do_is_named(closed: Path, layout: Layout, script: str, sentence: str) -> None:
    python = closed / "python3"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    assert sentence in run(
        ["make", "up", f"PYTHON={python}"], _makefile_in(closed / "here"), variables(layout), expect=2
    )


NOT_UTF_8 = pytest.param(
    os.fsdecode(b"caf\xe9"),
    id="not UTF-8",
    marks=pytest.mark.skipif(sys.platform == "darwin", reason="its file systems know no other names"),
)


@pytest.mark.parametrize("name", ["a:b", NOT_UTF_8])
def test_a_folder_in_which_python_installs_nothing_is_named(closed: Path, layout: Layout, name: str) -> None:
    shown = run(["make", "up", f"PYTHON={sys.executable}"], _makefile_in(closed / name), variables(layout), expect=2)
    assert "whose name holds a colon or is not UTF-8. Rename that folder" in shown


def _makefile_in(place: Path) -> Path:
    (place / "clients/python").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "clients/python/pyproject.toml", "uv.lock"):
        shutil.copy(REPOSITORY / name, place / name)
    return place


def test_programs_get_no_folder_for_sockets_that_is_too_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/" + "d" * 100)
    assert "TMPDIR" not in inherited_environment()
    monkeypatch.setenv("TMPDIR", "/tmp/mine")
    assert inherited_environment()["TMPDIR"] == "/tmp/mine"


def test_a_folder_in_a_shared_place_is_taken_only_from_oneself(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    folders.own(mine, 0o700)
    (mine / "kept").touch()
    folders.own(mine, 0o700)
    assert (mine / "kept").exists()
    link, file, open_to_others = tmp_path / "link", tmp_path / "file", tmp_path / "open"
    link.symlink_to(mine)
    file.touch()
    open_to_others.mkdir()
    open_to_others.chmod(0o777)
    for planted in (link, file, open_to_others, *([_strangers(tmp_path)] if os.geteuid() == 0 else [Path("/")])):
        with pytest.raises(LocalError, match="not a folder that this user alone may write to: remove it"):
            folders.own(planted, 0o700)


def _strangers(place: Path) -> Path:
    planted = place / "planted"
    planted.mkdir()
    os.chown(planted, 65534, 65534)
    return planted
