"""Rules that apply to a descriptor, and the bucket that each means."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ratelimit.model.rules import Entries, Rule
from tests.ratelimit.building import DOMAIN, rule, rule_set


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        ((("class", "stream"), ("client_ip", "192.0.2.7/32")), ["streams", "any-class"]),
        ((("class", "default"), ("client_ip", "192.0.2.7/32")), ["any-class"]),
        ((("class", "stream"), ("client_ip", "")), ["streams", "any-class"]),
        ((("client_ip", "192.0.2.7/32"), ("class", "stream")), []),
        ((("class", "stream"),), []),
        ((("class", "stream"), ("client_ip", "192.0.2.7/32"), ("user", "a")), []),
        ((("class", "STREAM"), ("user", "a")), []),
        ((), []),
    ],
)
def test_a_rule_matches_descriptors_of_exactly_its_entries_in_order(entries: Entries, names: list[str]) -> None:
    rules = rule_set(rule("streams", "class=stream client_ip"), rule("any-class", "class client_ip"))
    assert [each.name for each in rules.matching(DOMAIN, entries)] == names


def test_nothing_matches_in_a_foreign_domain() -> None:
    rules = rule_set(rule(match="class=default"))
    assert rules.matching(DOMAIN, (("class", "default"),))
    assert rules.matching("other", (("class", "default"),)) == ()


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
    rules, any_rule = rule_set(), rule()
    assert rules.bucket(any_rule, one) != rules.bucket(any_rule, other)


texts = st.text(max_size=6)
names = st.text("ab-:=", min_size=1, max_size=4)


@settings(max_examples=50)
@given(st.lists(st.tuples(names, st.lists(st.tuples(texts, texts), max_size=3)), min_size=2, max_size=8))
def test_two_buckets_share_a_key_only_if_they_are_one(buckets: list[tuple[str, list[tuple[str, str]]]]) -> None:
    rules = rule_set()
    # Names that the reader of rules files accepts.
    plain = [(re.sub("[^a-z0-9-]", "x", name), tuple(entries)) for name, entries in buckets]
    for one, other in itertools.combinations(plain, 2):
        keys = [rules.bucket(rule(name), entries) for name, entries in (one, other)]
        assert (keys[0] == keys[1]) == (one == other)


@given(texts, texts)
def test_all_buckets_of_a_domain_are_in_one_slot_of_a_cluster(key: str, value: str) -> None:
    bucket = rule_set().bucket(rule(), ((key, value),))
    assert bucket.partition("{")[2].partition("}")[0] == DOMAIN


def test_rules_say_what_they_match() -> None:
    some: Rule = rule(match="class=stream client_ip")
    assert " ".join(map(str, some.match)) == "class=stream client_ip=*"
