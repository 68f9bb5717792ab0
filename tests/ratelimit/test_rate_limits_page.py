"""docs/rate-limits.md: its examples work, and its reference is complete."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from services.ratelimit.__main__ import main
from services.ratelimit.operations import explaining
from services.ratelimit.store import rules_file
from services.ratelimit.store.rules_file import load
from tests.documents import REPOSITORY

PAGE = REPOSITORY / "docs" / "rate-limits.md"
BLOCKS = re.findall(r"^```(yaml|console|json)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
COMMANDS = "python -m services.ratelimit "


def test_every_example_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rules, shown = Path("rules.yaml"), 0
    for language, text in BLOCKS:
        if language == "yaml":
            rules.write_text(text)
            load(rules)
        if language == "json":
            Path("recording").write_text(text)
            (call,) = explaining.recorded(Path("recording"))
            assert (call.domain, call.descriptors[0].hits) == (json.loads(text)["domain"], 1)
        if language == "console":
            for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                assert command.startswith(COMMANDS)
                main(shlex.split(command.removeprefix(COMMANDS)))
                assert capsys.readouterr().out == output
                shown += 1
    assert shown >= 4


@pytest.mark.parametrize(
    ("of", "keys"),
    [
        ("a domain", rules_file._FILE_KEYS),
        ("a rule", rules_file._RULE_KEYS),
        ("an entry", rules_file._ENTRY_KEYS),
    ],
)
def test_the_reference_names_every_key_and_no_other(of: str, keys: tuple[str, ...]) -> None:
    table = PAGE.read_text().partition(f"| Key of {of} |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(keys)
