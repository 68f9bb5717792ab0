"""The documents refer only to what exists. Their shell commands are run in tests/system/test_examples.py."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass

from local.settings_table import PAGE, replaced
from mesh.contract import Access, read
from tests.documents import PAGES, PYTHON, REPOSITORY, page_id

README_LINES = 120
DECISIONS = sorted((REPOSITORY / "docs" / "decisions").glob("[0-9]*.md"))
PARTS = ("Context", "Decision", "Consequences", "Alternatives")


def _anchors(page: Path) -> set[str]:
    """The URL fragments of a page's headings, as hosting sites form them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
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


RECEIVER = "examples/python/webhook_receiver.py"
"""Calls no mesh: the mesh calls it."""
PROGRAMS = sorted(
    {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("examples/*/*") if path.name != "lib.sh"}
    - {RECEIVER}
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_that_finds_no_mesh_says_so_in_a_sentence(program: str) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        edge = f"127.0.0.1:{taken.getsockname()[1]}"
        runs = sys.executable if program.endswith(".py") else "bash"
        answer = subprocess.run(
            [runs, program],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=REPOSITORY,
            env=os.environ | {"STORYMESH_EDGE": edge},
        )
    assert answer.returncode != 0
    assert "Traceback" not in answer.stderr
    assert "make up" in answer.stderr or "make grpcurl" in answer.stderr, answer.stderr


def test_the_example_of_a_receiver_that_has_no_secret_says_so_in_a_sentence() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "WEBHOOK_SECRET"}
    answer = subprocess.run(
        [sys.executable, RECEIVER],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        env=environment,
    )
    assert answer.returncode != 0
    assert "Traceback" not in answer.stderr
    assert "WEBHOOK_SECRET" in answer.stderr


def _http_rows() -> dict[tuple[str, str], tuple[set[str], str]]:
    """By verb and path: the fields that docs/http-api.md names in its table, and who may call."""
    rows: dict[tuple[str, str], tuple[set[str], str]] = {}
    for first, fields, who in re.findall(
        r"^\| ([A-Z].*/.*) \| (.*?) ?\| (.+) \|$", (REPOSITORY / "docs/http-api.md").read_text(), re.MULTILINE
    ):
        verbs = re.findall(r"\b(?:GET|POST|PATCH|DELETE)\b", first)
        paths = re.findall(r"[/:][^ ,]+", first)
        for path in paths:
            whole = path if path.startswith("/") else paths[0].rpartition(":")[0] + path
            rows |= {(verb, whole): (set(re.findall(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*", fields)), who) for verb in verbs}
    return rows


WHO = {Access.PUBLIC: "anyone", Access.USER: "signed in", Access.ADMIN: "administrators"}
PROOF = {"password", "current_password", "challenge_id", "code"}


def test_the_table_of_the_http_surface_names_each_method_with_its_fields_and_callers() -> None:
    rows = _http_rows()
    shown = {row for row in rows if row[1].startswith(("/v1/", "/.well-known/", "/s/"))}
    bound = {
        (each.verb, each.template): method for method in read().methods if method.exposed for each in method.bindings
    }
    assert shown == set(bound)
    for (verb, template), method in bound.items():
        named, who = rows[verb, template]
        assert who == WHO[method.access], template
        fields = {each.name for each in method.descriptor.input_type.fields} - set(re.findall(r"{(\w+)}", template))
        expected = fields - PROOF if "proof" in named else fields
        assert expected <= named, f"{template} takes {expected - named}"


def test_the_bodies_that_a_page_shows_are_requests_of_the_contract() -> None:
    methods = {(each.verb, each.template): method for method in read().methods for each in method.bindings}
    shown = [
        (path, json.loads(body))
        for page in PAGES
        for path, body in re.findall(r'\$EDGE(/v1/[\w/:]+)"[^\n]*?(?:\\\n\s+)?-d \'({[^\n]*})\'', page.read_text())
    ]
    assert len(shown) > 2
    for path, body in shown:
        ParseDict(body, GetMessageClass(methods["POST", path].descriptor.input_type)())


def test_every_file_that_a_page_names_exists() -> None:
    for page in PAGES:
        for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|lua|yaml|md|proto|sh|toml|binpb))`", page.read_text()):
            places = [REPOSITORY, page.parent, *(REPOSITORY / "services").iterdir()]
            assert any((place / path).exists() for place in places), f"{page_id(page)} names {path}"


@pytest.mark.parametrize("target", ["up", "restart"])
def test_a_writer_named_to_make_reaches_the_runner(target: str) -> None:
    dry = ("make", "--dry-run", f"--directory={REPOSITORY}", target)
    assert "--writer" not in _answer_of(*dry).stdout
    assert f'local {target} --writer "composer"' in _answer_of(*dry, "WRITER=composer").stdout


@pytest.mark.parametrize("target", ["test", "test-fast", "test-times"])
def test_each_way_to_run_the_tests_takes_one_path(target: str) -> None:
    dry = _answer_of("make", "--dry-run", f"--directory={REPOSITORY}", target, "T=tests/kit").stdout
    (command,) = (line for line in dry.splitlines() if "bin/pytest" in line)
    assert '"$T"' in command
    assert "--numprocesses" not in command


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
