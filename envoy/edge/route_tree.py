"""Finds a request's route by the beginning of its path, because Envoy would try hundreds of routes in order for each request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edge.config import Config, extension, typed

_LITERAL = re.compile(r"(?:\\.|[\w/:](?!\?))*")
"""The characters with which everything begins that a regular expression of a path template matches, escapes included."""


def by_beginning(routes: Sequence[Config]) -> Config:
    """The matcher of a virtual host that takes the first of the routes that fits, like a list of them.

    It looks up the longest literal beginning of any route with which the path begins. A route can fit only if its own beginning is
    one of that, so only those are kept there, in their order.
    """
    beginnings = [_beginning(route["match"]) for route in routes]
    lists = {
        each: _action([route for own, route in zip(beginnings, routes, strict=True) if each.startswith(own)])
        for each in sorted(set(beginnings))
    }
    path = extension("path", "type.matcher.v3.HttpRequestHeaderMatchInput", header_name=":path")
    return {"matcher_tree": {"input": path, "prefix_match_map": {"map": lists}}}


def _action(routes: Sequence[Config]) -> Config:
    return {"action": {"name": "routes", "typed_config": typed("config.route.v3.RouteList", routes=list(routes))}}


def _beginning(match: Config) -> str:
    """The literal text with which every path begins that the match accepts."""
    if "safe_regex" in match:
        literal = _LITERAL.match(match["safe_regex"]["regex"])
        return re.sub(r"\\(.)", r"\1", literal[0]) if literal else ""
    if match.get("case_sensitive", True):
        path: str = match.get("path") or match["prefix"]
        return path
    return "/"
