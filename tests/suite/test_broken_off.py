"""A test that its timeout breaks off takes no other with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_what_was_broken_off_has_cleaned_up_before_the_next_test_begins() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("broken_off.py")),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert "3 failed, 1 passed" in run.stdout, run.stdout
