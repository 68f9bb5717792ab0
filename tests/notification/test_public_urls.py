"""Where links in mails lead: in production not to the machine of whoever clicks."""

from __future__ import annotations

import pytest

from services.notification.__main__ import warn_of_links
from services.notification.model.public_urls import opens_here_only


@pytest.mark.parametrize(
    ("url", "here_only"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://127.8.0.1/", True),
        ("https://LOCALHOST", True),
        ("https://storymesh.localhost:8443", True),
        ("http://localhost.:8080", True),
        ("http://[::1]:8080", True),
        ("http://0.0.0.0:8080", True),
        ("https://stories.example", False),
        ("https://localhost.example", False),
        ("http://192.168.1.7:8080", False),
        ("http://[2001:db8::1]", False),
    ],
)
def test_a_url_that_every_machine_takes_for_itself_is_told_from_one_that_leads_elsewhere(
    url: str, here_only: bool
) -> None:
    assert opens_here_only(url) is here_only


@pytest.mark.parametrize(
    ("url", "environment", "warned"),
    [
        ("http://127.0.0.1:8080", "production", True),
        ("http://127.0.0.1:8080", "development", False),
        ("https://stories.example", "production", False),
    ],
)
def test_in_production_a_log_line_says_that_links_lead_nowhere_else(
    caplog: pytest.LogCaptureFixture, url: str, environment: str, warned: bool
) -> None:
    warn_of_links(url, environment)
    assert ["STORYMESH_PUBLIC_URL" in record.getMessage() for record in caplog.records] == [True] * warned
