"""The contracts and the generated stubs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import check
import pytest
from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

Part = TypeVar("Part", bound=Any)


@pytest.mark.slow
def test_a_strict_type_checker_accepts_a_callers_code(tmp_path: Path) -> None:
    # Run outside of the repository, so that only installed packages are found.
    shutil.copy(Path(__file__).with_name("caller.py"), tmp_path)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "caller.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def without_a_field(contracts: FileDescriptorSet) -> None:
    response = named(named(contracts.file, "storymesh/auth/v1/user.proto").message_type, "User")
    response.field.remove(named(response.field, "email"))


def with_another_number(contracts: FileDescriptorSet) -> None:
    user = named(named(contracts.file, "storymesh/auth/v1/user.proto").message_type, "User")
    named(user.field, "email").number = 99


def without_a_method(contracts: FileDescriptorSet) -> None:
    service = story_service(contracts).service[0]
    service.method.remove(named(service.method, "CancelStory"))


def without_an_enum_value(contracts: FileDescriptorSet) -> None:
    enum = named(named(contracts.file, "storymesh/story/v1/story.proto").enum_type, "StoryState")
    enum.value.remove(named(enum.value, "STORY_STATE_CANCELLED"))


def without_a_service(contracts: FileDescriptorSet) -> None:
    del story_service(contracts).service[:]


def with_another_path(contracts: FileDescriptorSet) -> None:
    options = named(story_service(contracts).service[0].method, "ListStories").options
    rule: HttpRule = options.Extensions[annotations_pb2.http]  # type: ignore[index]  # its stub does not say what it extends
    rule.get = "/v2/stories"


def story_service(contracts: FileDescriptorSet) -> FileDescriptorProto:
    return named(contracts.file, "storymesh/story/v1/story_service.proto")


def named(parts: Iterable[Part], name: str) -> Part:
    return next(part for part in parts if part.name == name)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without_a_field, 'field "2" with name "email" on message "User" was deleted'),
        (with_another_number, 'field "2" with name "email"'),
        (without_a_method, 'RPC "CancelStory"'),
        (without_an_enum_value, '"STORY_STATE_CANCELLED"'),
        (without_a_service, 'service "StoryService"'),
        (with_another_path, "GET /v1/stories of /storymesh.story.v1.StoryService/ListStories"),
    ],
    ids=lambda each: getattr(each, "__name__", "").replace("_", "-"),
)
def test_what_breaks_callers_of_the_last_release_is_refused(
    change: Callable[[FileDescriptorSet], None],
    complaint: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    contracts = FileDescriptorSet.FromString(check.BASELINE.read_bytes())
    change(contracts)
    changed = tmp_path / "changed.binpb"
    changed.write_bytes(contracts.SerializeToString())
    with pytest.raises(SystemExit) as refused:
        check.breaking(changed)
    assert complaint.lower() in f"{capfd.readouterr().out}{refused.value}".lower()
