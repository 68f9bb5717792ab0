"""Parts of the edge that can be left out, to measure what each costs. What is left is no edge that anybody should run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .running import Change

BY_QUOTAS = {"rate_limit.quota_classes": "[default]"}
"""Settings of an edge that decides about calls such as a GET of a story by itself, with tokens that the limiter hands it."""

NO_LIMIT = "the limits"
"""The name of the edge that does not ask the limiter."""


def _manager(configuration: dict[str, Any]) -> dict[str, Any]:
    """The connection manager of the public listener."""
    listener = configuration["static_resources"]["listeners"][0]
    manager: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def _routes(configuration: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for host in _manager(configuration)["route_config"]["virtual_hosts"]:
        for each in host["matcher"]["matcher_tree"]["prefix_match_map"]["map"].values():
            yield from each["action"]["typed_config"]["routes"]


def _without_filters(fits: Callable[[str], bool]) -> Change:
    """Takes out the HTTP filters whose names fit, with what routes say of them."""

    def change(configuration: dict[str, Any]) -> None:
        manager = _manager(configuration)
        gone = {each["name"] for each in manager["http_filters"] if fits(each["name"])}
        if not gone:
            raise ValueError("the edge has no such filter")
        manager["http_filters"] = [each for each in manager["http_filters"] if each["name"] not in gone]
        for route in _routes(configuration):
            for name in gone:
                route.get("typed_per_filter_config", {}).pop(name, None)

    return change


def _without_all(prefix: str) -> Change:
    return _without_filters(lambda name: name.startswith(prefix))


def _without_filter(name: str) -> Change:
    return _without_filters(name.__eq__)


def _without_field(*names: str) -> Change:
    def change(configuration: dict[str, Any]) -> None:
        for name in names:
            # KeyError if the edge has no such field, as it would measure nothing.
            del _manager(configuration)[name]

    return change


def _without_traces(configuration: dict[str, Any]) -> None:
    _manager(configuration).pop("tracing", None)
    for route in _routes(configuration):
        route.pop("tracing", None)


def _without_health_checks(configuration: dict[str, Any]) -> None:
    for cluster in configuration["static_resources"]["clusters"]:
        cluster.pop("health_checks", None)


PARTS: Mapping[str, Change] = {
    "nothing": lambda _: None,
    NO_LIMIT: _without_all("envoy.filters.http.ratelimit."),
    "the check of tokens": _without_filter("envoy.filters.http.jwt_authn"),
    "the check of requests (Lua)": _without_filter("envoy.filters.http.lua"),
    "the check of bodies (Lua)": _without_filter("envoy.filters.http.lua.bodies"),
    "the header mutations": _without_all("envoy.filters.http.header_mutation"),
    "the early header mutations": _without_field("early_header_mutation_extensions"),
    "the local limit": _without_filter("envoy.filters.http.local_ratelimit"),
    "the buffer": _without_filter("envoy.filters.http.buffer"),
    "traces": _without_traces,
    "the access log": _without_field("access_log"),
    "health checks of services": _without_health_checks,
}
"""What is left out of each further edge, by its name in the table. The first leaves out nothing."""
