"""Which passwords are accepted."""

from __future__ import annotations

import pytest

from services.auth.model import Profile
from services.auth.password_policy import PasswordPolicy, normalized
from services.kit.errors import InvalidArgument

ADA = Profile("jonathan.seagull@gannets.example", "lonewriter", "Jonathan", "Livingston", ())


def reason(password: str, *, min_length: int = 15) -> str | None:
    try:
        PasswordPolicy(min_length).check(normalized(password), ADA)
    except InvalidArgument as error:
        (violation,) = error.violations
        assert violation.field == "password"
        return violation.reason
    return None


@pytest.mark.parametrize(
    "password",
    [
        "correct horse battery staple",
        "               a",
        "fifteen letters",
        "żółć jaźń gęślą",
        "🐢🐇🦊🐻🐼🐨🐯🦁🐮🐷🐸🐵🐔🐧🐦",
        "日本語のとても長い合言葉ですよ",
        "x7" * 3 + "kq 93 zebra lamp",
        "the gulls of jonathan fly",
        "x" * 500 + "correct horse battery staple" + "y" * 496,
    ],
)
def test_anything_long_and_uncommon_is_accepted(password: str) -> None:
    assert reason(password) is None


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        ("fourteen chars", "PASSWORD_TOO_SHORT"),
        ("", "PASSWORD_TOO_SHORT"),
        # Seven letters with seven marks that belong to them.
        ("e\N{COMBINING ACUTE ACCENT}" * 7, "PASSWORD_TOO_SHORT"),
        ("correct horse " * 74, "PASSWORD_TOO_LONG"),
        ("\N{GRINNING FACE}ab" * 171, "PASSWORD_TOO_LONG"),
        ("correct horse\nbattery", "PASSWORD_UNPRINTABLE"),
        ("correct horse battery\r", "PASSWORD_UNPRINTABLE"),
        ("correct horse\0battery", "PASSWORD_UNPRINTABLE"),
        ("correct horse\N{DELETE}battery", "PASSWORD_UNPRINTABLE"),
        ("1q2w3e4r5t6y7u8i9o0p", "PASSWORD_COMMON"),
        ("1Q2W3E4R5T6Y7U8I9O0P", "PASSWORD_COMMON"),
        ("passwordpassword", "PASSWORD_COMMON"),
        ("Password1Password1", "PASSWORD_COMMON"),
        ("!!!password12345!!!", "PASSWORD_COMMON"),
        ("123passwordPASSWORD456", "PASSWORD_COMMON"),
        ("123456789012345", "PASSWORD_COMMON"),
        ("aaaaaaaaaaaaaaaaaaaa", "PASSWORD_COMMON"),
        ("abcabcabcabcabcabc", "PASSWORD_COMMON"),
        ("               ", "PASSWORD_COMMON"),
        ("Storymesh Storymesh 1", "PASSWORD_CONTEXT"),
        ("jonathan.seagull1", "PASSWORD_CONTEXT"),
        ("JonathanLivingston!", "PASSWORD_CONTEXT"),
        ("lonewriter gannets", "PASSWORD_CONTEXT"),
    ],
)
def test_what_is_tried_first_is_refused(password: str, expected: str) -> None:
    assert reason(password) == expected


def test_the_length_is_a_setting() -> None:
    assert reason("kq93zebra", min_length=8) is None
    assert reason("kq93zeb", min_length=8) == "PASSWORD_TOO_SHORT"
    assert reason("password", min_length=8) == "PASSWORD_COMMON"
