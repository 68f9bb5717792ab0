"""The documents refer only to what exists. Their shell commands are run in tests/system/test_examples.py."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from local.settings_table import PAGE, replaced
from tests.documents import PAGES, PYTHON, REPOSITORY, page_id

README_LINES = 120
DECISIONS = sorted((REPOSITORY / "docs" / "decisions").glob("[0-9]*.md"))
PARTS = ("Context", "Decision", "Consequences", "Alternatives")


def _anchors(page: Path) -> set[str]:
    """The URL fragments of a page's headings, as hosting sites form them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _answer_of(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=REPOSITORY)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} does not exist"
        assert not fragment or fragment in _anchors(linked), f"{target} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    for line in re.findall(r"`make ([^`]+)`|^make ([^#\n]+)", page.read_text(), re.MULTILINE):
        for word in "".join(line).split():
            if not re.fullmatch(r"[a-z][a-z-]*", word):
                break  # what follows is a variable, or the target's arguments
            assert word in targets, f"make {word}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_module_that_a_page_runs_explains_itself(page: Path) -> None:
    for module in set(re.findall(r"python -m ([\w.]*\w)(?![\w.<])", page.read_text())):
        answer = _answer_of(sys.executable, "-m", module, "--help")
        assert answer.returncode == 0, f"python -m {module} --help: {answer.stderr}"
        assert "usage" in answer.stdout.lower()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_excerpt_in_python_is_a_part_of_an_example(page: Path) -> None:
    programs = [textwrap.dedent(program.read_text()) for program in (REPOSITORY / "examples").glob("python/*.py")]
    unindented = [re.sub(r"^ +", "", program, flags=re.MULTILINE) for program in programs]
    for excerpt in PYTHON.findall(page.read_text()):
        lines = re.sub(r"^ +", "", excerpt, flags=re.MULTILINE)
        assert any(lines in program for program in unindented), excerpt


def test_every_command_of_the_command_line_that_a_page_shows_exists() -> None:
    storymesh = Path(sys.executable).parent / "storymesh"
    shown = {
        words
        for page in PAGES
        for line in re.findall(r"^(?:\.venv/bin/)?storymesh ([a-z].*)$", page.read_text(), re.MULTILINE)
        if (words := tuple(word for word in line.split("#")[0].split() if re.fullmatch(r"[a-z][a-z-]+", word))[:2])
    }
    assert shown
    for words in shown:
        help_of = _answer_of(str(storymesh), *words, "--help")
        assert help_of.returncode == 0, f"storymesh {' '.join(words)}: {help_of.stderr}"


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("decision", DECISIONS, ids=page_id)
def test_a_decision_has_its_four_parts_and_fits_on_a_page(decision: Path) -> None:
    text = decision.read_text()
    assert re.findall(r"^## (\w+)", text, re.MULTILINE) == list(PARTS)
    assert len(text.splitlines()) <= 80


def test_decisions_are_numbered_without_a_gap_and_listed() -> None:
    assert [int(decision.name[:4]) for decision in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (REPOSITORY / "docs" / "decisions" / "README.md").read_text())
    assert listed == [decision.name for decision in DECISIONS]


def test_the_settings_page_is_what_the_classes_say() -> None:
    assert replaced(PAGE.read_text()) == PAGE.read_text(), "run: make settings"
