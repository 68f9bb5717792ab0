"""Previews of letters, and the settings of their looks."""

from __future__ import annotations

import email
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.notification.config import LetterSettings
from services.notification.model.letters import Brand, Letters, kinds, languages
from services.notification.model.letters.previews import PAGE, previews
from services.notification.model.rendering import Sender
from tests.mails import html_of, text_of

LETTERS = Letters(Brand(address="Storymesh\nBerlin"), public_url="https://stories.example")
SENDER = Sender("a@mail.example")


def test_all_kinds_are_written_in_all_languages_and_shown_in_one_page() -> None:
    files = previews(LETTERS, SENDER)
    page = files.pop(PAGE).decode()
    stems = {name.rpartition(".")[0] for name in files}
    assert {f"{kind.lower()}.{language}" for kind in kinds() for language in languages()} <= stems
    assert files.keys() == {f"{stem}.{ending}" for stem in stems for ending in ("html", "txt", "eml")}
    for stem in stems:
        assert f'src="{stem}.html"' in page
        mail = email.message_from_bytes(files[f"{stem}.eml"])
        assert html_of(mail).encode() == files[f"{stem}.html"]
        assert text_of(mail).encode() == files[f"{stem}.txt"]


def test_a_preview_of_one_kind_and_language_is_that_alone() -> None:
    files = previews(LETTERS, SENDER, kind="WELCOME", language="de")
    assert set(files) == {PAGE, "welcome.de.html", "welcome.de.txt", "welcome.de.eml"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.notification", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": ".:gen"})


def test_a_command_writes_them_without_a_mesh(tmp_path: Path) -> None:
    done = run("preview", "story_ready", "--language", "de", "--folder", str(tmp_path / "new" / "mails"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Open {tmp_path}/new/mails/{PAGE}" in done.stdout
    assert (tmp_path / "new" / "mails" / "story_ready.de.html").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("preview", "nothing"), "there is no kind nothing: there are account_deleted, "),
        (("mails", "--language", "xx"), "no letter is written in xx: there are en, de"),
    ],
)
def test_what_there_is_not_is_refused_in_a_sentence(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    done = run(*arguments, "--folder", str(tmp_path / "mails"))
    assert done.returncode == 1
    assert sentence in done.stderr
    assert not (tmp_path / "mails").exists()


@pytest.mark.parametrize(
    ("environment", "name", "value", "sentence"),
    [
        ("development", "public_url", "stories.example", "needs a URL"),
        ("development", "public_url", "javascript:alert(1)", "needs a URL"),
        ("development", "brand_logo_url", "logo.png", "needs a URL"),
        ("development", "brand_logo_url", 'https://a.example/"onerror="x', "needs a URL"),
        ("production", "brand_logo_url", "http://a.example/logo.png", "needs https"),
        ("development", "brand_color", "red", "needs a colour"),
        ("development", "brand_name", "", "needs a name"),
        ("development", "brand_name", "two\nlines", "needs a name"),
        ("development", "brand_name", "x" * 41, "needs a name"),
        ("development", "default_language", "fr", "needs a language in which letters are written: en, de"),
    ],
)
def test_a_setting_that_no_mail_could_show_is_refused(environment: str, name: str, value: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        LetterSettings.model_validate({"environment": environment, "mail_from": "a@mail.example", name: value})
