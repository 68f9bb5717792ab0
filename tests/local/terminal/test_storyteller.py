"""The demo's display of a story, and the text that it collects."""

import io
import re

import pytest
from rich.console import Console

from local.terminal.storyteller import Storyteller

STORY = "the lighthouse keeper found a letter under the third stair and read it twice"


def test_snapshots_chunks_and_resets_add_up_to_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    with Storyteller(Console(file=io.StringIO())) as teller:
        teller.replace("")
        teller.append("Once ")
        teller.append("upon")
        teller.replace("Once upon a time")
        teller.start_over(2)
        teller.append("It was ")
        teller.append("a dark night.\n\nThe end.")
    assert teller.text == "It was a dark night.\n\nThe end."
    assert "Once upon a time" in capsys.readouterr().out


def test_a_terminal_gets_whole_lines_no_wider_than_itself() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=30, color_system=None, legacy_windows=False)
    with Storyteller(console) as teller:
        for word in STORY.split():
            teller.append(f"{word} ")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", screen.getvalue()).splitlines()
    told = [line.rstrip() for line in lines if line.rstrip() and line.strip() in STORY and len(line.split()) > 3]
    assert told[:2] == ["the lighthouse keeper found a", "letter under the third stair"]
