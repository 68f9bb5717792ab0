"""What a newcomer forgets or mistypes is told by `make gen` and `make check` in a sentence, and costs nothing that was there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from local.settings import REPOSITORY
from tests.local.mesh.checkouts import copy_code
from tests.mesh.test_toy_service import TOY

pytestmark = pytest.mark.slow

MANIFESTS, GENERATE = ("-m", "mesh"), ("proto/generate.py",)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the repository with the toy service's folder and line, and without its contract."""
    place = copy_code(tmp_path / "storymesh", shutil.copy2)
    for name in ("proto", "docs", "buf.yaml", "gen"):
        source = REPOSITORY / name
        if source.is_dir() and not (place / name).exists():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file() and not (place / name).exists():
            shutil.copy2(source, place / name)
    shutil.copytree(TOY / "services", place / "services", dirs_exist_ok=True)
    services = place / "mesh" / "services.py"
    services.write_text(re.sub(r"^\)$", '    "toy",\n)', services.read_text(), flags=re.MULTILINE))
    return place


def told(place: Path, command: tuple[str, ...]) -> str:
    """What the command that fails writes to the standard error stream."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    paths = ":".join(str(place / folder) for folder in ("", "gen", "envoy"))
    environment = os.environ | {"PATH": path, "PYTHONPATH": paths}
    ended = subprocess.run(
        [sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    return ended.stderr


def test_a_fault_in_a_manifest_is_told_in_one_line(copy: Path) -> None:
    manifest = copy / "services/toy/manifest.py"
    right = manifest.read_text()
    for old, new, sentence in (
        ("port=170", "port=104", "story and toy: port: the blocks 100-133 and 104-113 overlap\n"),
        ("port=170", "port=170, ports=3", "services/toy/manifest.py: ports: 3 is not an even number of at least 2\n"),
        ("UserUpdated", "UserOld", "toy: takes[toy]: the contract has no message storymesh.events.v1.UserOld\n"),
    ):
        manifest.write_text(right.replace(old, new))
        assert told(copy, MANIFESTS) == sentence
    manifest.unlink()
    assert told(copy, MANIFESTS) == "services/toy/manifest.py: No module named 'services.toy.manifest'\n"


@pytest.mark.parametrize("module", ["config", "__main__", "migrations/env"])
def test_a_module_that_a_service_lacks_is_told_in_one_line(copy: Path, module: str) -> None:
    (copy / f"services/toy/{module}.py").unlink()
    assert told(copy, MANIFESTS) == f"services/toy/{module}.py is missing\n"


def test_an_inbox_whose_dead_letters_nobody_serves_is_told_in_one_line(copy: Path) -> None:
    main = copy / "services/toy/__main__.py"
    main.write_text("\n".join(line for line in main.read_text().splitlines() if "DeadLetterServicer" not in line))
    assert told(copy, MANIFESTS).startswith("services/toy/__main__.py does not add DeadLetterServicer")


def test_a_fault_in_a_contract_leaves_what_was_generated_before(copy: Path) -> None:
    before = sorted(path for path in (copy / "gen").rglob("*") if "__pycache__" not in path.parts)
    shutil.copytree(TOY / "proto", copy / "proto", dirs_exist_ok=True)
    contract = copy / "proto/storymesh/toy/v1/toy_service.proto"
    contract.write_text(contract.read_text().replace("access:", "acces:"))
    assert "no field named" in told(copy, GENERATE)
    assert sorted(path for path in (copy / "gen").rglob("*") if "__pycache__" not in path.parts) == before
    assert not list(copy.glob(".gen-*"))
