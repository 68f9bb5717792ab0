"""Documents and examples: each command line and each program in them runs against the whole mesh."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from local.harness import RunningMesh
from tests.documents import BASH, PAGES, REPOSITORY, page_id

GRPCURL = shutil.which("grpcurl", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}")

SESSIONS = {page_id(page): "\n".join(blocks) for page in PAGES if (blocks := BASH.findall(page.read_text()))}
"""The commands of each page that has any, as one script per page."""


async def run(mesh: RunningMesh, *command: str) -> str:
    """Run a command, which must succeed within a minute; return its output."""
    binaries = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=REPOSITORY,
        env=os.environ | {"STORYMESH_EDGE": mesh.edge_address, "MAIL": str(mesh.mail_dir), "PATH": binaries},
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.parametrize("page", sorted(SESSIONS))
async def test_the_shell_lines_of_a_page_work_as_pasted(mesh: RunningMesh, page: str) -> None:
    session = SESSIONS[page]
    if "grpcurl" in session and not GRPCURL:
        pytest.skip("grpcurl is not installed; `make grpcurl` builds it where Go is")
    output = await run(mesh, "bash", "-euo", "pipefail", "-c", session)
    assert '"reason":"INTERNAL"' not in output
    if page == "README.md":
        watched = [json.loads(line.removeprefix("data:")) for line in output.splitlines() if line.startswith("data:")]
        assert "snapshot" in watched[0]
        assert watched[-1]["done"]["story"]["text"]


async def test_the_first_story_in_curl_ends_with_the_story_and_its_notification(mesh: RunningMesh) -> None:
    output = await run(mesh, "bash", "examples/curl/first_story.sh")
    watched = [json.loads(line.removeprefix("data:")) for line in output.splitlines() if line.startswith("data:")]
    story = watched[-1]["done"]["story"]
    assert output.count(story["title"]) >= 3
    assert story["state"] == "STORY_STATE_COMPLETED"


async def test_the_sessions_in_curl_end_as_they_say(mesh: RunningMesh) -> None:
    output = await run(mesh, "bash", "examples/curl/sessions.sh")
    assert re.search(r"the new access token ends at \d{4}-", output)
    assert set(re.findall(r'"device_name":"(\w+)"', output)) == {"desk", "phone", "tablet"}
    assert '"revoked_count":2' in output
    assert '"first_name":"Ada"' in output
    assert output.rstrip().endswith("{}")


async def test_the_files_in_curl_are_uploaded_checked_and_fetched(mesh: RunningMesh) -> None:
    lines = (await run(mesh, "bash", "examples/curl/files.sh")).splitlines()
    assert [line for line in lines if line in ("200", "412")] == ["200", "412"]
    assert "FILE_STATE_CHECKING" in lines
    assert "FILE_STATE_READY" in lines
    assert any(line.startswith("HTTP/1.1 206") for line in lines)
    assert any('filename="licence.txt"' in line and "attachment" in line for line in lines)
    assert lines[-1] == "FILE_NOT_FOUND"


async def test_the_errors_in_curl_name_their_reasons_and_fields(mesh: RunningMesh) -> None:
    output = await run(mesh, "bash", "examples/curl/errors.sh")
    assert set(re.findall(r'"reason":"(\w+)"', output)) >= {"INVALID_ARGUMENT", "TOKEN_MISSING", "PATH_NOT_FOUND"}
    assert {"email", "username", "preferences"} <= set(re.findall(r'"field":"(\w+)"', output))


@pytest.mark.skipif(not GRPCURL, reason="grpcurl is not installed; `make grpcurl` builds it where Go is")
async def test_the_first_story_in_grpcurl_is_watched_to_its_end(mesh: RunningMesh) -> None:
    output = await run(mesh, "bash", "examples/grpcurl/first_story.sh")
    assert "STORY_STATE_COMPLETED" in output
    assert '"reason": "INVALID_CREDENTIALS"' in output


async def test_the_first_story_in_python_is_printed_and_a_refusal_explained(mesh: RunningMesh) -> None:
    output = await run(mesh, sys.executable, "examples/python/first_story.py")
    assert re.search(r"^['\"].+['\"] is done\.$", output, re.MULTILINE)
    assert "\nstory.txt is FILE_STATE_READY\n" in output
    assert "INVALID_ARGUMENT INVALID_ARGUMENT: ['story_id']" in output


async def test_the_stubs_in_python_explain_refusals(mesh: RunningMesh) -> None:
    output = await run(mesh, sys.executable, "examples/python/stubs.py")
    assert "INVALID_ARGUMENT INVALID_ARGUMENT {'password'" in output
    assert "UNAUTHENTICATED TOKEN_INVALID" in output
