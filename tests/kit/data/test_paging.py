"""Pages of a list that grows while it is read."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.data.paging import DEFAULT_SIZE, Page, Pages
from kit.errors import InvalidArgument
from kit.identity.signing import Signer

PAGES = Pages(Signer(b"k" * 32))


@dataclass(frozen=True)
class Row:
    id: UUID


def row(number: int) -> Row:
    return Row(UUID(int=number))


def read(table: set[int], query: str, size: int, token: str) -> Page[Row]:
    """As a store does it: newest first, one more than asked for."""
    request = PAGES.request(query, size, token)
    newest_first = sorted((n for n in table if request.before is None or n < request.before.int), reverse=True)
    return PAGES.page(query, request.size, [row(number) for number in newest_first[: request.size + 1]])


@given(
    st.sets(st.integers(min_value=1, max_value=10_000), max_size=60),
    st.lists(st.integers(min_value=1, max_value=12), min_size=1),
    st.lists(st.sets(st.integers(min_value=10_001, max_value=20_000), max_size=3)),
)
@pytest.mark.slow
def test_the_pages_together_are_the_list_also_while_rows_are_inserted(
    table: set[int], sizes: list[int], insertions: list[set[int]]
) -> None:
    expected = [row(number) for number in sorted(table, reverse=True)]
    got: list[Row] = []
    token, turn = "", 0
    while True:
        page = read(table, "q", sizes[turn % len(sizes)], token)
        got += page.items
        # What comes after the first page is newer than all of it.
        table = table | (insertions[turn] if turn < len(insertions) else set())
        token, turn = page.next_token, turn + 1
        if not token:
            break
    assert got == expected


def test_a_list_that_fills_its_last_page_exactly_has_no_next_one() -> None:
    assert read({1, 2, 3}, "q", 3, "").next_token == ""


def test_an_empty_list_is_one_empty_page() -> None:
    assert read(set(), "q", 3, "") == Page((), "")


def test_no_size_means_twenty() -> None:
    assert PAGES.request("q", 0, "").size == DEFAULT_SIZE == 20


@pytest.mark.parametrize("query", ["q:bob", "q:", "Q:alice", "stories:alice"])
def test_a_token_of_another_query_or_caller_is_refused(query: str) -> None:
    token = read({1, 2, 3}, "q:alice", 1, "").next_token
    with pytest.raises(InvalidArgument) as raised:
        PAGES.request(query, 1, token)
    (violation,) = raised.value.violations
    assert (violation.field, violation.reason) == ("page_token", "PAGE_TOKEN_INVALID")


@given(st.text(min_size=1))
@pytest.mark.slow
def test_a_token_that_was_not_handed_out_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument):
        PAGES.request("q", 1, token)


def test_a_token_that_was_tampered_with_is_refused() -> None:
    token = read({1, 2, 3}, "q", 1, "").next_token
    for position in range(len(token) - 1):
        other = "A" if token[position] != "A" else "B"
        with pytest.raises(InvalidArgument):
            PAGES.request("q", 1, token[:position] + other + token[position + 1 :])


def test_a_token_of_another_page_token_key_is_refused() -> None:
    token = Pages(Signer(b"x" * 32)).page("q", 1, [row(2), row(1)]).next_token
    with pytest.raises(InvalidArgument):
        PAGES.request("q", 1, token)
