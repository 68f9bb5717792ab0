"""The frame of the HTML pages that people open by a link without signing in, and the headers that the edge gives them.

A service writes a page with `document`; the edge writes the pages of refusals. Both are plain: no script, nothing loaded, one style
that the content security policy names by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape

MEDIA_TYPE = "text/html; charset=utf-8"

STYLE = """
:root { color-scheme: light dark; --text: #24292f; --faint: #57606a; --ground: #fffdf8; --line: #d8d4c8 }
@media (prefers-color-scheme: dark) { :root { --text: #e6e1d6; --faint: #a39d90; --ground: #1b1a17; --line: #3d3a33 } }
body { background: var(--ground); color: var(--text); font: 1.125rem/1.65 Georgia, serif; margin: 0 auto; max-width: 38rem;
  padding: 2.5rem 1.25rem; overflow-wrap: break-word }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0 0 1.5rem }
p { margin: 0 0 1.1rem; white-space: pre-line }
footer { border-top: 1px solid var(--line); color: var(--faint); font-size: .875rem; margin-top: 2.5rem; padding-top: 1rem }
button { font: inherit; padding: .4rem 1rem }
"""

_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

HEADERS = {
    # A page may post a form to the edge itself, such as one that unsubscribes.
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    # The address is a secret: no cache keeps the page, no search engine lists it, and no other site is told of it.
    "cache-control": "private, no-store",
    "x-robots-tag": "noindex, nofollow, noarchive",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every answer at a path that answers with pages, refusals included."""


def document(title: str, body: str, *, language: str = "en") -> str:
    """A page. `title` and `language` are plain text and escaped here; `body` is HTML, in which foreign text is escaped already."""
    return (
        f'<!doctype html>\n<html lang="{escape(language)}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="robots" content="noindex, nofollow">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _refusal(title: str, words: str) -> str:
    return document(title, f"<main>\n<h1>{escape(title)}</h1>\n<p>{escape(words)}</p>\n</main>")


_NO_LINK = _refusal(
    "This link does not work",
    "It may have expired, it may have been taken back, or a part of it is missing. If it comes from a mail, open it there again.",
)
_LATER = _refusal("Not at the moment", "This page cannot be shown right now. Try again in a little while.")

REFUSALS = {
    "400": _NO_LINK,
    "404": _NO_LINK,
    "429": _refusal("Too many visits at once", "Wait a moment, then open the page again."),
    "500": _LATER,
    "503": _LATER,
    "504": _LATER,
}
"""The pages of refusals by HTTP status."""

OTHER_REFUSAL = _refusal("This page cannot be shown", "The request was not understood.")
