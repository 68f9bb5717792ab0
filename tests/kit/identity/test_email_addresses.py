"""Which e-mail addresses are taken, and that every field of the contracts that holds one takes the same."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st
from storymesh.auth.v1 import account_service_pb2 as accounts
from storymesh.auth.v1 import registration_service_pb2 as registrations
from storymesh.auth.v1 import session_service_pb2 as sessions

from kit.errors import InvalidArgument, Violation
from kit.identity.email_addresses import NotAnAddress, canonical, normalized
from kit.rpc.validation import _address_fields, validate

TAKEN = {
    "ada@example.com": "ada@example.com",
    "Ada.Lovelace+tag@Example.COM": "Ada.Lovelace+tag@Example.COM",
    "!#$%&'*+/=^_`{|}~-@example.com": "!#$%&'*+/=^_`{|}~-@example.com",
    "a?=b@example.com": "a?=b@example.com",
    "a@b.cd": "a@b.cd",
    "a@1.2.3.com": "a@1.2.3.com",
    "a@b.c0m": "a@b.c0m",
    "a" * 64 + "@example.com": "a" * 64 + "@example.com",
    "a@" + "b" * 63 + ".com": "a@" + "b" * 63 + ".com",
    "a@" + "b." * 125 + "cd": "a@" + "b." * 125 + "cd",
    # Blanks around.
    "  ada@example.com ": "ada@example.com",
    "\tada@example.com\r\n": "ada@example.com",
    "\N{NO-BREAK SPACE}ada@example.com\N{IDEOGRAPHIC SPACE}": "ada@example.com",
    "\N{ZERO WIDTH NO-BREAK SPACE}ada@example.com\N{ZERO WIDTH SPACE}": "ada@example.com",
    # Domains in other scripts, and dots as they are typed in them.
    "ada@BÜCHER.example": "ada@xn--bcher-kva.example",
    "ada@bu\N{COMBINING DIAERESIS}cher.example": "ada@xn--bcher-kva.example",
    "ada@xn--bcher-kva.example": "ada@xn--bcher-kva.example",
    "ada@straße.example": "ada@xn--strae-oqa.example",
    "ada@例え\N{IDEOGRAPHIC FULL STOP}テスト": "ada@xn--r8jz45g.xn--zckzah",
    "ada@example\N{FULLWIDTH FULL STOP}com": "ada@example.com",
    "ada@example\N{HALFWIDTH IDEOGRAPHIC FULL STOP}com": "ada@example.com",
    "ada@\N{FULLWIDTH LATIN SMALL LETTER E}xample.com": "ada@example.com",
}

REFUSED = [
    *("", " ", "ada", "@", "@example.com", "ada@", "ada@@example.com", "a@b@example.com"),
    # Encoded words, and whatever else a header reads in another way.
    "=?utf-8?q?x=0d=0aSubject=3a_Win?=@example.com",
    *("=?utf-8?b?eA==?=@example.com", "a=?b@example.com", "ada@=?utf-8?q?x?=.com"),
    *(
        "<ada@example.com>",
        "Ada <ada@example.com>",
        "ada@example.com, bob@example.com",
        "ada@example.com;bob@example.com",
    ),
    *(
        "ada@example.com\r\nBcc: bob@example.com",
        "ada\n@example.com",
        "ada@exam\tple.com",
        "a\0da@example.com",
        "ada\x7f@example.com",
    ),
    # RFC 5321 has these in quotes only, or not at all.
    *(
        '"a b"@example.com',
        '"ada"@example.com',
        "a b@example.com",
        "ada(x)@example.com",
        "ada@(x)example.com",
        "a,b@example.com",
    ),
    *(
        "a:b@example.com",
        "a;b@example.com",
        "a<b@example.com",
        "a[b@example.com",
        "a\\b@example.com",
        'a"b@example.com',
    ),
    *(".ada@example.com", "ada.@example.com", "a..b@example.com", ".@example.com"),
    # Other scripts before the @, and what looks like ASCII.
    *("ädä@example.com", "\N{CYRILLIC SMALL LETTER A}da@example.com", "ada\N{FULLWIDTH COMMERCIAL AT}example.com"),
    *("a\N{ZERO WIDTH SPACE}da@example.com", "a\N{NO-BREAK SPACE}da@example.com", "a\N{SOFT HYPHEN}da@example.com"),
    # Hosts that get no mail from elsewhere.
    *(
        "ada@localhost",
        "ada@127.0.0.1",
        "ada@[127.0.0.1]",
        "ada@[IPv6:::1]",
        "ada@1.2.3.4",
        "ada@example.123",
        "ada@2130706433",
    ),
    *(
        "ada@\u0661.\u0662.\u0663.\u0664",
        "ada@127\N{IDEOGRAPHIC FULL STOP}0\N{IDEOGRAPHIC FULL STOP}0\N{IDEOGRAPHIC FULL STOP}1",
    ),
    *(
        "ada@.com",
        "ada@example.",
        "ada@example.com.",
        "ada@example..com",
        "ada@.",
        "ada@example.com\N{IDEOGRAPHIC FULL STOP}",
    ),
    *(
        "ada@-example.com",
        "ada@example-.com",
        "ada@exam_ple.com",
        "ada@exam ple.com",
        "ada@example.com:25",
        "ada@example.com/x",
    ),
    *(
        "ada@exa%mple.com",
        "ada@bü_cher.example",
        "ada@-.ü.example",
        "ada@\N{SOFT HYPHEN}.example",
        "ada@☃\N{CYRILLIC SMALL LETTER A}\u0301\u0640.example",
    ),
    # Lengths.
    "a" * 65 + "@example.com",
    *(
        "a@" + "b" * 64 + ".com",
        "a@" + "ü" * 63 + ".example",
        "a@" + "b." * 126 + "cd",
        "a" * 64 + "@" + "b." * 94 + "cd",
    ),
    *(" " * 600 + "ada@example.com", "a@" + "b" * 100_000 + ".com"),
]

FIELDS = [
    (registrations.CreateRegistrationRequest(password="correct horse battery staple"), "email"),
    (sessions.StartSessionCodeRequest(), "email"),
    (accounts.StartPasswordResetRequest(), "email"),
    (accounts.StartEmailChangeRequest(password="correct horse battery staple"), "new_email"),
]
"""Every field that holds an address, in a request that is valid otherwise."""


@pytest.mark.parametrize(("text", "kept"), TAKEN.items(), ids=ascii)
def test_an_address_is_taken_in_every_spelling_and_kept_in_one(text: str, kept: str) -> None:
    assert normalized(text) == kept
    assert normalized(kept) == kept
    assert canonical(text) == kept.lower()
    for request, field in FIELDS:
        message = type(request).FromString(request.SerializeToString())
        setattr(message, field, text)
        validate(message)
        assert getattr(message, field) == kept


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text[:40]))
def test_what_cannot_be_delivered_or_reads_as_something_else_is_refused_alike_in_every_field(text: str) -> None:
    with pytest.raises(NotAnAddress) as refused:
        normalized(text)
    assert len(text) < 4 or text not in str(refused.value)
    for request, field in FIELDS:
        message = type(request).FromString(request.SerializeToString())
        setattr(message, field, text)
        with pytest.raises(InvalidArgument) as invalid:
            validate(message)
        (violation,) = invalid.value.violations
        assert violation == Violation(field, violation.description, "STRING_EMAIL" if text else "REQUIRED")


@given(st.text(alphabet=st.sampled_from('aZ1.@-_=?+ "<>,\r\n\0äß。\uff0e\u200b\u0301'), max_size=30))
def test_every_text_has_one_form_to_compare_and_what_is_taken_is_plain(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)
    try:
        kept = normalized(text)
    except NotAnAddress:
        return
    assert kept.isascii()
    assert kept.isprintable()
    assert kept.count("@") == 1
    assert not set(kept) & set(' "<>,;:()[]\\')
    assert normalized(f"\t{kept}\N{NO-BREAK SPACE}") == kept
    assert canonical(kept.upper()) == canonical(text)


def test_no_request_has_an_address_without_the_rule() -> None:
    asked = [
        method.input_type
        for contract in (accounts, registrations, sessions)
        for service in contract.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    named = {
        (message.name, field.name)
        for message in asked
        for field in message.fields
        if field.type == FieldDescriptor.TYPE_STRING and "email" in field.name
    }
    ruled = {(message.name, field) for message in asked for field in _address_fields(message)}
    assert ruled == named == {(type(request).__name__, field) for request, field in FIELDS}
