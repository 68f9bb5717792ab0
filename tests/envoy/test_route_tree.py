"""A request takes the route that it would take if all routes were tried in their order, and only a few are tried."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from edge.config import Config
from edge.route_tree import by_beginning

TEMPLATES = (
    "/v1/stories",
    "/v1/stories/{id}",
    "/v1/stories/{id}:cancel",
    "/v1/stories:archive",
    "/v1/storyLinks",
    "/v1/{area}/all",
    "/.well-known/jwks.json",
    "/s/{token}",
)
PATHS = (
    *("/", "/v1", "/v1/", "/v1/stories", "/v1/stories/", "/v1/stories/1", "/v1/stories/1/", "/v1/stories/1:cancel"),
    *("/v1/stories/1:cancel/", "/v1/stories/all", "/v1/stories:archive", "/v1/stories:archived", "/v1/storiesX"),
    *("/v1/storyLinks", "/v1/storyLinks/1", "/v1/story", "/v1/links/all", "/v1//all", "/V1/stories", "/s/x", "/S/x/y"),
    *("/.well-known/jwks.json", "/Xwell-known/jwksXjson", "/pkg.Service/Get", "/pkg.Service/GetAll", "/pkg.Service/G"),
)


def routes() -> list[Config]:
    matches: list[Config] = [{"path": "/pkg.Service/Get"}, {"path": "/pkg.Service/GetAll"}]
    matches += [{"safe_regex": {"regex": pattern(template)}} for template in TEMPLATES]
    matches += [{"prefix": "/s/", "case_sensitive": False}, {"prefix": "/"}]
    return [{"name": str(number), "match": match} for number, match in enumerate(matches)]


def pattern(template: str) -> str:
    return "[^/]+".join(re.escape(part) for part in re.split(r"\{[^}]*\}", template)) + "/?"


def fits(match: Config, path: str) -> bool:
    if "path" in match:
        return bool(match["path"] == path)
    if "prefix" in match:
        lower = not match.get("case_sensitive", True)
        return (path.lower() if lower else path).startswith(match["prefix"])
    return re.fullmatch(match["safe_regex"]["regex"], path) is not None


def chosen(tree: Config, path: str) -> Sequence[Config]:
    """The routes that Envoy tries: those of the longest beginning."""
    lists: dict[str, Any] = tree["matcher_tree"]["prefix_match_map"]["map"]
    longest = max((each for each in lists if path.startswith(each)), key=len)
    tried: Sequence[Config] = lists[longest]["action"]["typed_config"]["routes"]
    return tried


@pytest.mark.parametrize("path", PATHS)
def test_a_path_meets_every_route_that_fits_it_in_their_order(path: str) -> None:
    fitting = [route["name"] for route in routes() if fits(route["match"], path)]
    tried = [route["name"] for route in chosen(by_beginning(routes()), path) if fits(route["match"], path)]
    assert tried == fitting


def test_a_path_is_not_tried_against_the_routes_of_others() -> None:
    tree = by_beginning(routes())
    assert len(chosen(tree, "/pkg.Service/Get")) == 3
    names = {route["match"].get("safe_regex", {}).get("regex") for route in chosen(tree, "/v1/storyLinks")}
    assert names == {None, pattern("/v1/{area}/all"), pattern("/v1/storyLinks")}
