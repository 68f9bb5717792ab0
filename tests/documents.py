"""The documents of the repository, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(REPOSITORY.glob("*.md")),
    *sorted(REPOSITORY.glob("docs/**/*.md")),
    *sorted(REPOSITORY.glob("examples/**/*.md")),
    *sorted(REPOSITORY.glob("clients/**/*.md")),
    *sorted(REPOSITORY.glob("tests/**/*.md")),
]

BASH = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
"""Blocks of commands that tests run against a mesh, unchanged."""
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
"""Excerpts of programs in examples/."""


def page_id(page: Path) -> str:
    """Return the page's path in the repository."""
    return str(page.relative_to(REPOSITORY))
