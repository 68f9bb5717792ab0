"""Field rules of the contracts, as a person reads them who broke one."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from storymesh.auth.v1 import account_service_pb2 as accounts
from storymesh.auth.v1 import registration_service_pb2 as registrations
from storymesh.auth.v1 import session_service_pb2 as sessions
from storymesh.notification.v1 import notification_service_pb2 as notifications
from storymesh.ops.v1 import dead_letter_service_pb2 as dead_letters
from storymesh.story.v1 import story_service_pb2 as stories
from storymesh.story.v1.story_pb2 import STORY_LENGTH_SHORT

from kit.errors import InvalidArgument, Violation
from kit.rpc.validation import validate
from mesh import contract


def violations(message: Message) -> tuple[Violation, ...]:
    with pytest.raises(InvalidArgument) as raised:
        validate(message)
    return raised.value.violations


@pytest.mark.parametrize(
    ("message", "field", "reason"),
    [
        (stories.GetStoryRequest(), "story_id", "REQUIRED"),
        (stories.GetStoryRequest(story_id="x"), "story_id", "STRING_UUID"),
        (stories.CreateStoryRequest(preferences=["cats", " "]), "preferences[1]", "STRING_PATTERN"),
        (stories.CreateStoryRequest(preferences=["cats", "x" * 21]), "preferences[1]", "STRING_MAX_BYTES"),
        (stories.CreateStoryRequest(preferences=["cats", "cats"]), "preferences", "REPEATED_UNIQUE"),
        (stories.CreateStoryRequest(preferences=list("abcdef")), "preferences", "REPEATED_MAX_ITEMS"),
        (stories.CreateStoryRequest(theme="a\nb"), "theme", "STRING_PATTERN"),
        (stories.CreateStoryRequest(length=99), "length", "ENUM_DEFINED_ONLY"),  # type: ignore[arg-type]  # not a length
        (notifications.ListNotificationsRequest(page_size=101), "page_size", "INT32_GTE_LTE"),
        (notifications.ListNotificationsRequest(page_size=-1), "page_size", "INT32_GTE_LTE"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_rule_names_the_field_and_the_rule(message: Message, field: str, reason: str) -> None:
    (violation,) = violations(message)
    assert (violation.field, violation.reason) == (field, reason)


_SHOWS_NOTHING = (
    " \t\N{NO-BREAK SPACE}\N{SOFT HYPHEN}\N{COMBINING GRAPHEME JOINER}\N{ARABIC LETTER MARK}\N{HANGUL FILLER}\N{OGHAM SPACE MARK}"
    "\N{EN QUAD}\N{ZERO WIDTH SPACE}\N{ZERO WIDTH JOINER}\N{RIGHT-TO-LEFT MARK}\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}"
    "\N{RIGHT-TO-LEFT OVERRIDE}\N{NARROW NO-BREAK SPACE}\N{WORD JOINER}\N{POP DIRECTIONAL ISOLATE}\N{BRAILLE PATTERN BLANK}"
    "\N{IDEOGRAPHIC SPACE}\N{VARIATION SELECTOR-16}\N{ZERO WIDTH NO-BREAK SPACE}\N{HALFWIDTH HANGUL FILLER}"
    "\N{INTERLINEAR ANNOTATION ANCHOR}\0\x1f\x7f\x85\x9f"
)
_NEW_LINES = "\n\v\f\r\x1c\x1d\x1e\x85\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}"
_VISIBLE = [
    "cats",
    "été",
    "naïve café",
    "猫",
    "고양이",
    "แมว",
    "🐈",
    "👩\N{ZERO WIDTH JOINER}🚀",
    "❤\N{VARIATION SELECTOR-16}",
    "\N{RIGHT-TO-LEFT MARK}חתול\N{LEFT-TO-RIGHT MARK}",
    "می\N{ZERO WIDTH NON-JOINER}خواهم",
    "a\N{NO-BREAK SPACE}b",
    "\N{IDEOGRAPHIC SPACE}犬",
    "-",
]


def _with_preferences(*preferences: str) -> list[Message]:
    """One request of each method that takes preferences."""
    updating = accounts.UpdateAccountRequest()
    updating.preferences.extend(list(preferences))
    return [
        stories.CreateStoryRequest(preferences=preferences),
        registrations.CreateRegistrationRequest(
            email="a@example.com", password="correct horse battery", preferences=preferences
        ),
        updating,
    ]


@pytest.mark.parametrize("blank", [*_SHOWS_NOTHING, "", " \N{ZERO WIDTH SPACE}\N{NO-BREAK SPACE}"], ids=ascii)
def test_a_preference_that_shows_nothing_is_blank_wherever_it_is_given(blank: str) -> None:
    for request in _with_preferences(blank):
        (violation,) = violations(request)
        assert violation.field.startswith("preferences")


@pytest.mark.parametrize("visible", _VISIBLE, ids=ascii)
def test_whatever_shows_may_be_a_preference_in_any_script(visible: str) -> None:
    for request in _with_preferences(visible):
        validate(request)
    validate(stories.CreateStoryRequest(theme=visible))


@pytest.mark.parametrize("end", _NEW_LINES, ids=ascii)
def test_every_line_break_of_unicode_ends_a_line(end: str) -> None:
    text = f"a{end}b"
    registering = registrations.CreateRegistrationRequest(
        email="a@example.com", password="correct horse battery", first_name=text, last_name=text
    )
    registration_id = "0195c5a4-1111-7000-8000-000000000000"
    for request, fields in (
        (stories.CreateStoryRequest(theme=text), ["theme"]),
        (registering, ["first_name", "last_name"]),
        (accounts.UpdateAccountRequest(first_name=text, last_name=text), ["first_name", "last_name"]),
        (sessions.CreateSessionRequest(login="a", password="b", device_name=text), ["device_name"]),
        (
            registrations.CompleteRegistrationRequest(registration_id=registration_id, code="123456", device_name=text),
            ["device_name"],
        ),
    ):
        assert [violation.field for violation in violations(request)] == fields
    for preferring in _with_preferences(text):
        assert violations(preferring)


@pytest.mark.parametrize("item", ["", "a", "{}"], ids=["empty", "the same", "different"])
def test_a_list_that_is_far_too_long_is_refused_and_costs_little_to_judge(item: str) -> None:
    items = [item.format(number) for number in range(60_000)]
    requests = [
        *_with_preferences(*items),
        dead_letters.ReplayDeadLettersRequest(service="story", event_ids=items, reason="it broke"),
        dead_letters.DiscardDeadLettersRequest(service="story", event_ids=items, reason="it broke"),
    ]
    before = time.process_time()
    for request in requests:
        for violation in violations(request):
            assert violation.field.startswith(("preferences", "event_ids"))
    # Of this process alone, whatever else the machine does. With each item judged, 6 s.
    assert time.process_time() - before < 2


def test_every_invalid_field_is_told_at_once() -> None:
    request = registrations.CreateRegistrationRequest(
        email="nobody", password="", first_name="a\r\nb", preferences=["", "x"]
    )
    assert [violation.field for violation in violations(request)] == [
        "email",
        "password",
        "first_name",
        "preferences[0]",
    ]


def test_no_description_shows_a_regular_expression() -> None:
    request = stories.CreateStoryRequest(preferences=[" "], theme="\x00", prompt="\x00", language="!", request_id="!")
    for violation in violations(request):
        assert violation.description
        assert not set(violation.description) & set("^$\\[]")


def test_more_violations_than_fit_the_trailers_are_cut_off() -> None:
    request = stories.CreateStoryRequest(preferences=[" "] * 5000)
    assert len(violations(request)) == 20


def test_a_valid_message_passes() -> None:
    validate(stories.CreateStoryRequest(preferences=["cats", "été"], theme="the sea", length=STORY_LENGTH_SHORT))


@pytest.mark.parametrize(
    "service",
    [
        "storymesh.auth.v1.RegistrationService",
        "storymesh.notification.v1.NotificationService",
        "storymesh.story.v1.StoryService",
    ],
)
def test_the_rules_of_every_request_can_be_evaluated(service: str) -> None:
    pool = descriptor_pool.Default()
    for method in contract.linked([service]).values():
        request = GetMessageClass(pool.FindMessageTypeByName(method.descriptor.input_type.full_name))()
        with suppress(InvalidArgument):
            validate(request)
