"""A story as an HTML page, for whoever has its link."""

from __future__ import annotations

import re
from html import escape

from mesh import pages

from .links import SharedStory


def story_page(story: SharedStory) -> str:
    """The page. Title and text come from people and models, so they are shown as text alone."""
    paragraphs = "".join(f"<p>{escape(each)}</p>\n" for each in re.split(r"\n\s*\n", story.text) if each.strip())
    until = f"{story.expires_at:%Y-%m-%d}"
    body = (
        f'<main dir="auto">\n<h1>{escape(story.title)}</h1>\n{paragraphs}</main>\n'
        f'<footer lang="en">Written by Storymesh. This page works until <time datetime="{until}">{until}</time>, unless its owner '
        "takes it back before. Whoever has its address can read it.</footer>"
    )
    return pages.document(story.title, body, language=story.language)
