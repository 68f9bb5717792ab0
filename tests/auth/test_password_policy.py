"""Which passwords are accepted."""

from __future__ import annotations

import pytest

from services.auth.model import Profile
from services.auth.password_policy import PasswordPolicy, normalized
from services.kit.errors import InvalidArgument

ADA = Profile("jonathan.seagull@gannets.example", "lonewriter", "Jonathan", "Livingston", ())


def reason(password: str, *, min_length: int = 15) -> str | None:
    found = reasons(PasswordPolicy(min_length), password)
    assert len(found) <= 1
    return found[0] if found else None


def reasons(policy: PasswordPolicy, password: str, profile: Profile | None = ADA) -> list[str]:
    try:
        policy.check(normalized(password), profile)
    except InvalidArgument as error:
        violations = error.violations
    else:
        violations = ()
    assert {violation.field for violation in violations} <= {"password"}
    return [violation.reason for violation in violations]


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


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        ("kq93-Zebra", []),
        ("kq93 Zeb", []),
        ("żółć-JAŹŃ-٣", []),
        ("Livingston4?", []),
        ("kq93-Ze", ["PASSWORD_TOO_SHORT"]),
        ("kq93-zebra", ["PASSWORD_NEEDS_UPPER_CASE"]),
        ("KQ93-ZEBRA", ["PASSWORD_NEEDS_LOWER_CASE"]),
        ("kqxy-Zebra", ["PASSWORD_NEEDS_DIGIT"]),
        ("kqxy²Zebra-", ["PASSWORD_NEEDS_DIGIT"]),
        ("kq93xZebra", ["PASSWORD_NEEDS_SYMBOL"]),
        # A mark that no letter swallows.
        ("q\N{COMBINING ACUTE ACCENT}k93xZebra", ["PASSWORD_NEEDS_SYMBOL"]),
        ("correct horse battery staple", ["PASSWORD_NEEDS_UPPER_CASE", "PASSWORD_NEEDS_DIGIT"]),
        (
            "",
            [
                "PASSWORD_TOO_SHORT",
                "PASSWORD_NEEDS_LOWER_CASE",
                "PASSWORD_NEEDS_UPPER_CASE",
                "PASSWORD_NEEDS_DIGIT",
                "PASSWORD_NEEDS_SYMBOL",
            ],
        ),
        ("Password1!", ["PASSWORD_COMMON"]),
        ("!QAZ2wsx", ["PASSWORD_COMMON"]),
        ("Ab1!Ab1!", ["PASSWORD_COMMON"]),
        ("kq93-Ze\nbra", ["PASSWORD_UNPRINTABLE"]),
        ("kq93-Zebra" * 103, ["PASSWORD_TOO_LONG"]),
    ],
)
def test_the_rule_of_classes_names_each_class_that_is_missing_and_keeps_the_blocklist(
    password: str, expected: list[str]
) -> None:
    assert reasons(PasswordPolicy(15, "classes"), password) == expected


def test_the_field_is_the_callers() -> None:
    with pytest.raises(InvalidArgument) as refused:
        PasswordPolicy(15).check("short", ADA, field="new_password")
    assert [violation.field for violation in refused.value.violations] == ["new_password"]


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        ("jonathan.seagull1", []),
        ("Storymesh Storymesh 1", ["PASSWORD_CONTEXT"]),
        ("passwordpassword", ["PASSWORD_COMMON"]),
        ("fourteen chars", ["PASSWORD_TOO_SHORT"]),
    ],
)
def test_without_a_profile_everything_but_the_words_of_the_account_is_checked(
    password: str, expected: list[str]
) -> None:
    assert reasons(PasswordPolicy(15), password, None) == expected
