"""The password policy."""

from __future__ import annotations

from time import thread_time

import pytest

from kit.errors import InvalidArgument
from services.auth.model import Profile
from services.auth.model.password_policy import PasswordPolicy, normalized
from services.auth.model.password_strength import advice

ADA = Profile("jonathan.seagull@gannets.example", "lonewriter", "Jonathan", "Livingston", ())


GUESSABLE = [
    # Sequences and keyboard patterns, also of other languages.
    *("abcdefghijklmnop", "zyxwvutsrqponmlkj", "abcdefghijklmnopqrstuvwxyz", "0123456789abcdef", "12345678abcdefgh"),
    *(
        "9876543210987654",
        "qwertyuiopasdfgh",
        "poiuytrewqlkjhgf",
        "zxcvbnm,./asdfgh",
        "1qaz2wsx3edc4rfv5tgb",
        "!@#$%^&*()_+qwer",
    ),
    *("qwertzuiopasdfgh", "azertyuiopqsdfgh", "йцукенгшщзхъфыва", "абвгдежзийклмно"),
    # Repeated characters, words and pairs, and interleaved sequences.
    *(
        "aaaabbbbccccdddd",
        "aabbccddeeffgghh",
        "1111222233334444",
        "112233445566778899",
        "aaaaaaaaaaaaaaaab",
        "               a",
    ),
    *(
        "abcabcabcabcabc1",
        "abcd1234abcd1234",
        "abc123abc123abc123",
        "1a2b3c4d5e6f7g8h",
        "a b c d e f g h i",
        "p-a-s-s-w-o-r-d-1",
    ),
    # Common passwords and words in a row, with symbols and with dates.
    *(
        "letmeinletmein123",
        "letmeinplease12345",
        "iloveyouiloveyou1",
        "adminadminadmin1",
        "welcomewelcome123",
        "dragondragon1234",
    ),
    *(
        "passwordpassword1234",
        "mypasswordis12345",
        "thisismypassword",
        "monkeydragonshadow",
        "manchesterunited1",
        "motdepassemotdepasse",
    ),
    *(
        "P@ssw0rdP@ssw0rd",
        "p4ssw0rdp4ssw0rd",
        "qwerty12345qwerty",
        "Sunshine2024!Sunshine",
        "Liverpool2023!!",
        "chocolatechocolate",
    ),
    *("january1990february", "31121999 01012000", "19900101199001011", "19841984198419841"),
    # Names of any person.
    *("mynameisjohnsmith", "johnsmith1985johns", "fifteen letters"),
]


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
        "        kq 93 zebra lamp",
        "three old letters",
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
        # Seven letters with seven combining marks that belong to them.
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


@pytest.mark.parametrize("password", GUESSABLE)
def test_what_takes_few_guesses_is_refused_however_long_it_is(password: str) -> None:
    assert reason(password) in ("PASSWORD_GUESSABLE", "PASSWORD_COMMON")


def test_the_length_is_a_setting() -> None:
    assert reason("kq93zobra", min_length=8) is None
    assert reason("kq93zeb", min_length=8) == "PASSWORD_TOO_SHORT"
    assert reason("password", min_length=8) == "PASSWORD_COMMON"


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        ("kq93-Zebra", []),
        ("kq93 Zeb", []),
        ("żółć-JAŹŃ-٣", []),
        ("Livingston4?", ["PASSWORD_GUESSABLE"]),
        ("Qwerty123!", ["PASSWORD_GUESSABLE"]),
        ("Summer2024!", ["PASSWORD_GUESSABLE"]),
        ("kq93-Ze", ["PASSWORD_TOO_SHORT"]),
        ("kq93-zebra", ["PASSWORD_NEEDS_UPPER_CASE"]),
        ("KQ93-ZEBRA", ["PASSWORD_NEEDS_LOWER_CASE"]),
        ("kqxy-Zebra", ["PASSWORD_NEEDS_DIGIT"]),
        ("kqxy²Zebra-", ["PASSWORD_NEEDS_DIGIT"]),
        ("kq93xZebra", ["PASSWORD_NEEDS_SYMBOL"]),
        # A mark that combines with no letter.
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
        ("lonewriter gannets", []),
        ("letmeinletmein123", ["PASSWORD_GUESSABLE"]),
        ("Storymesh Storymesh 1", ["PASSWORD_CONTEXT"]),
        ("passwordpassword", ["PASSWORD_COMMON"]),
        ("fourteen chars", ["PASSWORD_TOO_SHORT"]),
    ],
)
def test_without_a_profile_everything_but_the_words_of_the_account_is_checked(
    password: str, expected: list[str]
) -> None:
    assert reasons(PasswordPolicy(15), password, None) == expected


@pytest.mark.parametrize(
    ("password", "words"),
    [
        ("qwertyuiopasdfgh", "This is similar to a commonly used password."),
        ("abcdefghijklmnop", "Avoid sequences."),
        ("letmeinletmein123", "Avoid repeated words and characters."),
        ("thisismypassword", "Add another word or two."),
    ],
)
def test_a_guessable_password_comes_with_advice_and_never_with_itself(password: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        PasswordPolicy(15).check(password, ADA)
    (violation,) = refused.value.violations
    assert words in violation.description
    assert password not in f"{violation} {refused.value}"


@pytest.mark.parametrize("password", ["l0newr1ter g@nnets", "retirwenol stennag", "Lonewriter ~ Gannets"])
def test_words_of_the_account_make_a_password_guessable_also_when_they_are_dressed_up(password: str) -> None:
    PasswordPolicy(15).check(password, None)
    assert reason(password) in ("PASSWORD_GUESSABLE", "PASSWORD_CONTEXT")


@pytest.mark.parametrize("unit", ["4@8({[<3691!|70$5+7%2", "l1|!i", "$5+%2@", "aA1!", "correct horse battery ", "界"])
def test_no_password_keeps_the_processor_busy(unit: str) -> None:
    """Twenty kinds of substitutes take the library half a second, and anybody may send them, so its input is bounded."""
    password = (unit * 1024).encode()[:1024].decode(errors="ignore")
    advice(password, ["storymesh"], guesses=10**10)
    began = thread_time()
    advice(password, ["storymesh"], guesses=10**10)
    assert thread_time() - began < 0.2
