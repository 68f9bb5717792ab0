"""The settings file and its overrides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edge.bootstrap import bootstrap
from edge.settings import Address, OnFailure, SettingsError, load

from mesh.catalog import manifests
from mesh.contract import read
from mesh.services import SERVICES

CHECKED_IN = Path(__file__).resolve().parents[2] / "envoy/edge.yaml"


def test_the_checked_in_settings_name_files_that_exist() -> None:
    files = load(CHECKED_IN).files
    assert files.contract.is_file()
    assert files.openapi.is_file()
    assert files.docs.is_file()


def test_a_copy_of_the_settings_file_works_wherever_it_lies(tmp_path: Path) -> None:
    copy = tmp_path / "edge.yaml"
    copy.write_text(CHECKED_IN.read_text())
    assert load(copy).files == load(CHECKED_IN).files
    copy.write_text(f"{copy.read_text()}\nfiles: {{contract: mine.binpb}}\n")
    assert load(copy).files.contract == tmp_path / "mine.binpb"


def test_an_override_wins_over_the_file() -> None:
    settings = load(CHECKED_IN, ["listen=0.0.0.0:80", "timeouts.unary_seconds=3", "rate_limit.on_failure.default=deny"])
    assert settings.listen == Address("0.0.0.0", 80)
    assert settings.timeouts.unary_seconds == 3
    assert settings.rate_limit.on_failure["default"] is OnFailure.DENY
    assert settings.rate_limit.on_failure["stream"] is OnFailure.ALLOW


def test_endpoints_are_a_list_in_yaml_or_between_commas() -> None:
    expected = (Address("a", 1), Address("::1", 2))
    assert load(CHECKED_IN, ["services.auth=a:1, [::1]:2"]).services["auth"] == expected
    assert load(CHECKED_IN, ["services.auth=['a:1', '[::1]:2']"]).services["auth"] == expected


def test_an_empty_collector_means_none() -> None:
    assert load(CHECKED_IN, ["tracing.otlp="]).tracing.otlp is None


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("lisen=127.0.0.1:8080", r"lisen: Extra inputs"),
        ("listen=8080", r"listen"),
        ("listen=127.0.0.1:99999", r"listen: .*not host:port"),
        ("services.auth=[]", r"services\.auth"),
        ("timeouts.unary_seconds=0", r"timeouts\.unary_seconds"),
        ("sizes.request_headers_kb=64", r"sizes\.request_headers_kb"),
        ("rate_limit.on_failure.default=maybe", r"rate_limit\.on_failure\.default"),
        ("listen", r"expected name=value"),
        ("listen.port=1", r"listen is not a section"),
        ("services=[", r"--set services"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(override: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        load(CHECKED_IN, [override])


def test_services_listen_at_their_ports_of_one_machine_unless_told_otherwise() -> None:
    services = load(CHECKED_IN, ["services.auth=a:1"]).services
    assert services == {name: (("127.0.0.1", 18_400 + each.port),) for name, each in manifests().items()} | {
        "auth": (("a", 1),)
    }


def test_a_service_without_endpoints_is_refused_by_name() -> None:
    others = ", ".join(f"{name}: ['a:1']" for name in SERVICES if name != "story")
    settings = load(CHECKED_IN, [f"services={{{others}}}"])
    with pytest.raises(SettingsError, match="no endpoints for story"):
        bootstrap(settings, read(settings.files.contract))


def test_an_answer_for_a_rate_limit_class_that_does_not_exist_is_refused_by_name() -> None:
    settings = load(CHECKED_IN, ["rate_limit.on_failure.credential=deny"])
    with pytest.raises(
        SettingsError, match="the contract has no rate-limit class credential; it has default, credentials"
    ):
        bootstrap(settings, read(settings.files.contract))


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")


def actions(part: object) -> Iterator[dict[str, Any]]:
    """The actions of all routes to a cluster, wherever they stand in the configuration."""
    if isinstance(part, dict):
        if "cluster" in part.get("route", {}):
            yield part["route"]
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from actions(each)


def test_every_route_to_a_service_says_a_fixed_authority() -> None:
    """A server in Rust resets calls whose authority is none by RFC 3986; that would look like a failure of the service."""
    settings = load(CHECKED_IN)
    found = [*actions(bootstrap(settings, read(settings.files.contract)))]
    services = [action for action in found if action["cluster"] in settings.services]
    assert {action["cluster"] for action in services} >= {"auth", "story", "notification"}
    assert all(action.get("host_rewrite_literal") for action in services)
