"""The contracts and what is made of them."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from storymesh.options.v1 import policy_pb2

from kit.identity.policies import access_of, methods_of

ROOT = Path(__file__).parents[2]
DESCRIPTORS = FileDescriptorSet.FromString((ROOT / "gen/descriptors.binpb").read_bytes())
SERVICES = [
    f"{file.package}.{service.name}"
    for file in DESCRIPTORS.file
    for service in file.service
    if file.package.startswith("storymesh.")
]


MODULES = [file.name.removesuffix(".proto").replace("/", ".") + "_pb2" for file in DESCRIPTORS.file if file.service]


def methods() -> dict[str, MethodDescriptor]:
    for module in MODULES:
        importlib.import_module(module)
    return methods_of(SERVICES)


@pytest.mark.parametrize("path", sorted(methods()))
def test_every_method_says_who_may_call_it(path: str) -> None:
    assert access_of(methods()[path]) != policy_pb2.ACCESS_UNSPECIFIED


def test_a_strict_type_checker_accepts_a_callers_code(tmp_path: Path) -> None:
    # Away from the repository, so that only what is installed counts.
    shutil.copy(Path(__file__).with_name("caller.py"), tmp_path)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "caller.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
