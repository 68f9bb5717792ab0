"""Start of a worker: one whose writer cannot write reports that and exits before it takes a story."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

KEY = "sk-9f3ad1e07c"
ENVIRONMENT = {
    "STORYMESH_MESH_KEY": "m" * 43,
    "STORYMESH_CURSOR_KEY": "c" * 43,
    "STORYMESH_LINK_KEY": "l" * 43,
    "STORYMESH_DATABASE_URL": "postgresql+psycopg://nobody:nothing@127.0.0.1:1/nowhere",
    "STORYMESH_REDIS_URL": "redis://127.0.0.1:1/0",
}


def started(command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = ENVIRONMENT | {f"STORYMESH_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "services.story", command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"writer": "openai"}, "story worker: the openai writer needs STORYMESH_OPENAI_API_KEY"),
        (
            {"writer": "openai", "openai_api_key": KEY, "openai_base_url": "localhost:8000/v1"},
            "story worker: STORYMESH_OPENAI_BASE_URL is no address: it needs a form such as https://host/v1",
        ),
        # A text file as the model: a missing package and an invalid model are both found while the writer warms up.
        ({"writer": "local", "model_path": __file__}, "story worker: "),
    ],
)
def test_a_writer_that_cannot_write_ends_the_worker_with_a_sentence_and_78(
    settings: dict[str, str], sentence: str
) -> None:
    ended = started("worker", **settings)
    assert (ended.returncode, ended.stdout) == (os.EX_CONFIG, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(sentence)
    assert KEY not in line


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_an_unknown_writer_is_named_by_server_and_worker(command: str) -> None:
    ended = started(command, writer="parrot")
    assert ended.returncode == os.EX_CONFIG
    (line,) = ended.stderr.splitlines()
    assert line.startswith("STORYMESH_WRITER: ")
