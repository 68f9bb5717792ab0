"""Texts of several lines that people are shown and that others chose."""

from __future__ import annotations

from kit.identity.display_text import visible


def paragraphs(text: str) -> str:
    """Each line as `visible` leaves it, and one empty line where there were several. Empty when nothing is left to be seen."""
    lines = [visible(line) for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    kept = [line for at, line in enumerate(lines) if line or (at and lines[at - 1])]
    return "\n".join(kept).strip("\n")
