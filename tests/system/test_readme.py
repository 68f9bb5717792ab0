"""The README's shell lines do what they say, as pasted."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from local.harness import RunningMesh
from local.settings_table import replaced

README = Path(__file__).parents[2] / "README.md"


async def pasted(script: str) -> str:
    """What bash prints for it; the script must succeed line by line."""
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(60):
        output, _ = await shell.communicate()
    assert shell.returncode == 0, output.decode()
    return output.decode()


async def test_the_shell_session_of_the_readme_works_as_pasted(mesh: RunningMesh) -> None:
    session, devices, refusal = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    here = session.replace("http://127.0.0.1:8080", mesh.edge_url).replace(".local/mail", str(mesh.mail_dir))
    assert here != session
    output = await pasted(here + devices + refusal)
    watched = [json.loads(line.removeprefix("data:")) for line in output.splitlines() if line.startswith("data:")]
    assert "snapshot" in watched[0]
    title = watched[-1]["done"]["story"]["title"]
    assert output.count(title) >= 3
    assert '"next_page_token":""' in output
    assert "refresh_token" in output
    assert '"device_name":"tablet"' in output
    assert '"revoked_count":1' in output
    assert '"first_name":"Ada"' in output
    for field in ("email", "username", "preferences"):
        assert f'"field":"{field}"' in output


def test_the_settings_table_of_the_readme_is_what_the_classes_say() -> None:
    readme = README.read_text()
    assert replaced(readme) == readme, "run: make readme"
