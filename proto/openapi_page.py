"""Renders the explorer page: one HTML file that shows an OpenAPI document, makes its calls, and loads nothing else.

The document is embedded. A content security policy names the page's script and style by their hashes, so that no script
in an answer can run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_suffix(".html")


def page(document: dict[str, Any]) -> str:
    """The page with the document embedded."""
    html = TEMPLATE.read_text(encoding="utf-8")
    # Only "<" could end the element early.
    embedded = json.dumps(document, ensure_ascii=False).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; script-src {_hash_of('script', html)}; style-src {_hash_of('style', html)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    return html.replace("{{policy}}", policy).replace("{{document}}", embedded)


def _hash_of(element: str, html: str) -> str:
    """The policy's hash source for the template's only element of that name without attributes (CSP level 3, section 2.3.1)."""
    content = re.search(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    if content is None:
        raise ValueError(f"{TEMPLATE.name} has no <{element}>")
    digest = hashlib.sha256(content[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
