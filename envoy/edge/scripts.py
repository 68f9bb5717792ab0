"""What Envoy's own filters cannot do, in Lua, for the few routes that want it; elsewhere the filter does nothing."""

from __future__ import annotations

from pathlib import Path

from edge import lua
from edge.config import Config, extension, typed
from mesh.edge_protocol import STREAM_ENDED_HEADER

STREAMS, DOCUMENTS, VERBS = "streams", "documents", "verbs"
"""The scripts: resumable server-sent events, HEAD for documents that a service answers, and a slash after a verb of a path."""

_FILTER = "envoy.filters.http.lua.scripts"
_HERE = Path(__file__).parent


def scripts() -> Config:
    """The filter; stands right before the transcoder, whose input and output the scripts change."""
    common = lua.constants(ENDED=STREAM_ENDED_HEADER) + (_HERE / "common.lua").read_text()
    return extension(
        _FILTER,
        "extensions.filters.http.lua.v3.Lua",
        source_codes={
            name: {"inline_string": common + (_HERE / f"{name}.lua").read_text()}
            for name in (STREAMS, DOCUMENTS, VERBS)
        },
    )


def running(script: str) -> Config:
    """Per-route configuration. A JSON request passes two routes, the first inwards and the last outwards: both need it."""
    return {_FILTER: typed("extensions.filters.http.lua.v3.LuaPerRoute", name=script)}
