"""The comparison of addresses and usernames."""

from __future__ import annotations

import pytest

from services.auth.model import canonical_email, canonical_login


@pytest.mark.parametrize(
    ("email", "canonical"),
    [
        ("Ada@Example.ORG", "ada@example.org"),
        ("ada+tag@example.org", "ada+tag@example.org"),
        ("a.d.a@example.org", "a.d.a@example.org"),
        ("ada@BÜCHER.example", "ada@xn--bcher-kva.example"),
        ("ada@bu\N{COMBINING DIAERESIS}cher.example", "ada@xn--bcher-kva.example"),
        # IDNA 2008 keeps the sharp s apart from ss, which is another person's.
        ("ada@straße.example", "ada@xn--strae-oqa.example"),
        ('"a@b"@example.org', '"a@b"@example.org'),
        ("ada@-.ü.example", "ada@-.ü.example"),
    ],
)
def test_addresses_are_compared_in_one_form(email: str, canonical: str) -> None:
    assert canonical_email(email) == canonical
    assert canonical_login(canonical) == canonical


def test_look_alikes_stay_apart() -> None:
    assert canonical_email("\N{CYRILLIC SMALL LETTER A}da@example.org") != canonical_email("ada@example.org")
    assert canonical_email("ada@ex\N{CYRILLIC SMALL LETTER A}mple.org") != canonical_email("ada@example.org")


@pytest.mark.parametrize("login", ["", "@", "\0", "a\0b@c", "\ud7ff" * 80, "%", "a" * 254, "@" * 254])
def test_any_text_has_a_form_that_can_be_looked_up(login: str) -> None:
    assert "\0" not in canonical_login(login)
