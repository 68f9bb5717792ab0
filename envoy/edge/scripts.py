"""Lua scripts for what Envoy's own filters cannot do. They run on the few routes that name them."""

from __future__ import annotations

from pathlib import Path

from edge import lua
from edge.config import Config, extension, typed
from mesh import pages
from mesh.edge_protocol import REDIRECT_HEADER, STREAM_ENDED_HEADER

STREAMS, DOCUMENTS, VERBS, PAGES, REDIRECTS = "streams", "documents", "verbs", "pages", "redirects"
"""The scripts: resumable server-sent events, HEAD for documents that a service answers, a slash after a path's verb, pages, and
redirections."""

_FILTER = "envoy.filters.http.lua.scripts"
_HERE = Path(__file__).parent


def scripts() -> Config:
    """The Lua filter. It stands right before the transcoder, because the scripts change its input and output."""
    common = lua.constants(ENDED=STREAM_ENDED_HEADER, REDIRECT=REDIRECT_HEADER) + (_HERE / "common.lua").read_text()
    of_pages = lua.constants(
        PAGE_HEADERS=pages.HEADERS,
        PAGE_TYPE=pages.MEDIA_TYPE,
        REFUSALS=pages.REFUSALS,
        OTHER_REFUSAL=pages.OTHER_REFUSAL,
    )
    return extension(
        _FILTER,
        "extensions.filters.http.lua.v3.Lua",
        source_codes={
            name: {"inline_string": common + (of_pages if name == PAGES else "") + (_HERE / f"{name}.lua").read_text()}
            for name in (STREAMS, DOCUMENTS, VERBS, PAGES, REDIRECTS)
        },
    )


def running(script: str) -> Config:
    """Per-route configuration that runs a script. A JSON request takes one route in and another out, and both need it."""
    return {_FILTER: typed("extensions.filters.http.lua.v3.LuaPerRoute", name=script)}
