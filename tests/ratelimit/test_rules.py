"""Rules that apply to a descriptor, and the bucket that each means."""

from __future__ import annotations

import itertools
import re
import sys
from ipaddress import ip_network
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ratelimit.model.matching import DescriptorEntry
from services.ratelimit.model.rules import DomainRules, Entries, OnNoMatch, OnRedisDown, Rule, RuleSet, replaced
from tests.ratelimit.building import DOMAIN, rule, rule_set


def names(rules: RuleSet, *entries: tuple[str, str]) -> list[str]:
    return [each.name for each in rules.matching(DOMAIN, entries)]


@pytest.mark.parametrize(
    ("entries", "applying"),
    [
        ((("class", "stream"), ("client_ip", "192.0.2.7/32")), ["streams"]),
        ((("class", "default"), ("client_ip", "192.0.2.7/32")), ["any-class"]),
        ((("class", "stream"), ("client_ip", "")), ["streams"]),
        ((("client_ip", "192.0.2.7/32"), ("class", "stream")), []),
        ((("class", "stream"),), []),
        ((("class", "stream"), ("client_ip", "192.0.2.7/32"), ("user", "a")), []),
        ((("class", "STREAM"), ("user", "a")), []),
        ((), []),
    ],
)
def test_a_rule_matches_descriptors_of_exactly_its_entries_in_order(entries: Entries, applying: list[str]) -> None:
    rules = rule_set(rule("streams", "class=stream client_ip"), rule("any-class", "class client_ip"))
    assert names(rules, *entries) == applying


def test_nothing_matches_in_a_foreign_domain() -> None:
    rules = rule_set(rule(match="class=default"))
    assert rules.matching(DOMAIN, (("class", "default"),))
    assert rules.matching("other", (("class", "default"),)) == ()


def test_rules_with_one_match_apply_together() -> None:
    rules = rule_set(rule("minutely", "class=a user"), rule("any", "class user"), rule("daily", "class=a user"))
    assert names(rules, ("class", "a"), ("user", "x")) == ["minutely", "daily"]


@pytest.mark.parametrize(
    ("value", "applying"),
    [
        ("abc", "exact"),
        ("abcd", "longer"),
        ("abd", "shorter"),
        ("ab", "shorter"),
        ("a", "any"),
        ("", "any"),
        ("ABC", "any"),
        ("ab*", "shorter"),
    ],
)
def test_of_prefixes_the_longest_that_matches_applies_and_an_exact_value_before_it(value: str, applying: str) -> None:
    rules = rule_set(
        rule("any", "user"), rule("shorter", "user=ab*"), rule("exact", "user=abc"), rule("longer", "user=abc*")
    )
    assert names(rules, ("user", value)) == [applying]


@pytest.mark.parametrize(
    ("value", "applying"),
    [
        ("10.1.2.3/32", "office"),
        ("10.1.2.3", "office"),
        ("10.1.0.0/16", "office"),
        ("10.0.0.0/8", "net"),
        ("10.9.9.9/32", "net"),
        ("0.0.0.0/0", "any"),
        ("11.0.0.1/32", "any"),
        ("::ffff:10.1.2.3", "office"),
        ("::ffff:10.1.2.3/128", "office"),
        ("::ffff:a01:203", "office"),
        ("::ffff:0:0/90", "any"),
        ("2001:db8:1:2::/64", "v6"),
        ("2001:DB8:0:0:0::5", "v6"),
        ("2001:db8::/31", "any"),
        ("2001:db9::1", "any"),
        ("10.1.2.3/", "any"),
        ("10.1.2.3/33", "any"),
        ("10.1.2.3/+8", "any"),
        ("10.1.2", "any"),
        ("010.1.2.3", "any"),
        ("10.1.2.3%eth0", "any"),
        ("fe80::1%eth0", "any"),
        ("\N{ARABIC-INDIC DIGIT ONE}0.1.2.3", "any"),
        ("10.1.2.3\0", "any"),
        ("not an address", "any"),
        ("", "any"),
    ],
)
def test_of_networks_the_longest_that_holds_the_whole_value_applies(value: str, applying: str) -> None:
    rules = rule_set(
        rule("any", "client_ip"),
        rule("net", "client_ip~10.0.0.0/8"),
        rule("office", "client_ip~10.1.0.0/16"),
        rule("v6", "client_ip~2001:db8::/32"),
    )
    assert names(rules, ("client_ip", value)) == [applying]


def test_a_network_of_every_address_is_narrower_than_any_value() -> None:
    rules = rule_set(rule("all", "client_ip~0.0.0.0/0"), rule("all6", "client_ip~::/0"), rule("any", "client_ip"))
    found = [names(rules, ("client_ip", value)) for value in ("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "x")]
    assert found == [["all"], ["all6"], ["all"], ["any"]]


def test_the_first_entries_decide_before_the_later_ones_and_where_they_lead_nowhere_a_general_rule_applies() -> None:
    rules = rule_set(
        rule("class-a", "class=a client_ip"),
        rule("one-address", "class client_ip=x"),
        rule("class-b-other", "class=b client_ip=z"),
        rule("rest", "class client_ip"),
    )
    assert names(rules, ("class", "a"), ("client_ip", "x")) == ["class-a"]
    assert names(rules, ("class", "b"), ("client_ip", "x")) == ["one-address"]
    assert names(rules, ("class", "b"), ("client_ip", "y")) == ["rest"]


def test_a_rule_that_always_applies_does_so_beside_more_specific_ones() -> None:
    rules = rule_set(
        rule("all", "class client_ip", always=True),
        rule("net", "class client_ip~10.0.0.0/8", always=True),
        rule("class-a", "class=a client_ip"),
        rule("one", "class=a client_ip=10.0.0.1/32"),
    )
    assert names(rules, ("class", "a"), ("client_ip", "10.0.0.1/32")) == ["all", "net", "one"]
    assert names(rules, ("class", "a"), ("client_ip", "192.0.2.1")) == ["all", "class-a"]
    assert names(rules, ("class", "b"), ("client_ip", "x")) == ["all"]


values = st.sampled_from(
    ["", "a", "ab", "abc", "b", "10.0.0.1", "10.0.0.0/8", "10.1.0.0/16", "::ffff:10.0.0.1", "2001:db8::1"]
)
patterns = st.sampled_from(
    ["", "=a", "=ab", "=a*", "=ab*", "=10.0.0.1", "~10.0.0.0/8", "~10.1.0.0/16", "~2001:db8::/32", "~0.0.0.0/0"]
)


@given(st.lists(st.tuples(patterns, patterns, st.booleans()), max_size=12), values, values)
def test_the_index_finds_what_asking_every_rule_finds(matches: list[tuple[str, str, bool]], one: str, two: str) -> None:
    rules = rule_set(
        *(
            rule(f"r{number}", f"k{first} l{second}", always=always)
            for number, (first, second, always) in enumerate(matches)
        )
    )
    entries = (("k", one), ("l", two))
    found = [each for each in rules.rules if each.matches(entries)]
    best = max((tuple(part.specificity for part in each.match) for each in found if not each.always), default=None)
    expected = [each for each in found if each.always or tuple(part.specificity for part in each.match) == best]
    assert rules.matching(DOMAIN, entries) == tuple(expected)


def test_a_call_to_which_a_rule_applies_is_spared_those_that_it_replaces() -> None:
    general, special = rule("general", "class"), rule("special", "user", replaces=frozenset({"general"}))
    third = rule("third", "user", replaces=frozenset({"special"}))
    assert replaced([(general,), (special,)]) == [(), (special,)]
    # Replaced rules replace too, as in envoyproxy/ratelimit: what applies does not depend on an order.
    assert replaced([(general,), (special, third)]) == [(), (third,)]


def test_a_domain_without_rules_is_denied_where_any_file_denies() -> None:
    allowing = DomainRules("a", OnNoMatch.ALLOW, ())
    denying = DomainRules("b", OnNoMatch.DENY, ())
    assert RuleSet((allowing,)).of("other").on_no_match is OnNoMatch.ALLOW
    assert RuleSet((allowing, denying)).of("other").on_no_match is OnNoMatch.DENY
    assert RuleSet((allowing, denying)).of("a").on_no_match is OnNoMatch.ALLOW


def test_a_thousand_rules_are_found_by_a_handful_of_looks() -> None:
    """Counts look-ups, because time would say what else the machine does."""
    rules = rule_set(*(rule(f"r{number}", f"class=c{number} client_ip") for number in range(1000)))
    entries = (("class", "c999"), ("client_ip", "192.0.2.7/32"))
    assert names(rules, *entries) == ["r999"]
    calls = 0

    def counted(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        rules.matching(DOMAIN, entries)
    finally:
        sys.setprofile(None)
    assert calls < 30


def bucket(entries: Entries, name: str = "a-rule") -> str:
    return Rule(name, tuple(DescriptorEntry(key) for key, _ in entries), None, OnRedisDown.OPEN).bucket(entries)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((("b", "c_d"),), (("b_c", "d"),)),
        ((("b", "c:d"), ("e", "f")), (("b", "c"), ("d:e", "f"))),
        ((("b", "c=d"),), (("b=c", "d"),)),
        ((("b", "%3A"),), (("b", ":"),)),
        ((("b", ""),), ()),
    ],
)
def test_descriptors_that_look_alike_have_buckets_of_their_own(one: Entries, other: Entries) -> None:
    assert bucket(one) != bucket(other)


texts = st.text(max_size=6)
rule_names = st.text("ab-:=", min_size=1, max_size=4)


@settings(max_examples=50)
@given(st.lists(st.tuples(rule_names, st.lists(st.tuples(texts, texts), max_size=3)), min_size=2, max_size=8))
def test_two_buckets_share_a_key_only_if_they_are_one(buckets: list[tuple[str, list[tuple[str, str]]]]) -> None:
    # Names that the reader of rules files accepts.
    plain = [(re.sub("[^a-z0-9-]", "x", name), tuple(entries)) for name, entries in buckets]
    for one, other in itertools.combinations(plain, 2):
        keys = [bucket(entries, name) for name, entries in (one, other)]
        assert (keys[0] == keys[1]) == (one == other)


@given(texts, texts)
def test_all_buckets_of_a_domain_are_in_one_slot_of_a_cluster(key: str, value: str) -> None:
    assert bucket(((key, value),)).partition("{")[2].partition("}")[0] == DOMAIN


def test_values_that_share_have_one_bucket_and_so_have_all_spellings_of_a_network() -> None:
    def keys(entry: DescriptorEntry, *found: str) -> int:
        each = Rule("a", (entry,), None, OnRedisDown.OPEN)
        return len({each.bucket(((entry.key, value),)) for value in found})

    assert keys(DescriptorEntry("file", prefix="a"), "ab", "ac") == 2
    assert keys(DescriptorEntry("file", prefix="a", shared=True), "ab", "ac") == 1
    assert keys(DescriptorEntry("file", shared=True), "ab", "ac", "%*") == 1
    net = ip_network("10.0.0.0/8")
    spellings = ("10.0.0.1", "10.0.0.1/32", "::ffff:10.0.0.1", "::FFFF:10.0.0.1/128")
    assert keys(DescriptorEntry("client_ip", network=net), *spellings) == 1
    assert keys(DescriptorEntry("client_ip", network=net), "10.0.0.1", "10.0.0.2") == 2
    assert keys(DescriptorEntry("client_ip", network=net, shared=True), "10.0.0.1", "10.0.0.2") == 1
    assert (
        keys(DescriptorEntry("client_ip", network=ip_network("2001:db8::/32")), "2001:db8::1", "2001:DB8:0::0:1") == 1
    )


def test_a_shared_bucket_is_no_values_own() -> None:
    shared = Rule("a", (DescriptorEntry("k", shared=True),), None, OnRedisDown.OPEN).bucket((("k", "v"),))
    own = Rule("a", (DescriptorEntry("k"),), None, OnRedisDown.OPEN)
    assert shared not in {own.bucket((("k", value),)) for value in ("*", "%*", "%25*", "")}


def test_a_long_value_makes_a_short_key_of_its_own() -> None:
    one, other = (bucket((("k", "x" * 900_000 + end),)) for end in "ab")
    assert one != other
    assert len(one) < 200
    assert bucket((("k", one.partition("k=")[2]),)) != one


def test_rules_say_what_they_match() -> None:
    some: Rule = rule(match="class=stream user=a* client_ip~192.0.2.0/24 client_ip")
    assert " ".join(map(str, some.match)) == "class=stream user=a* client_ip=192.0.2.0/24 client_ip=*"
    assert str(DescriptorEntry("user", shared=True)) == "user=* (shared)"
