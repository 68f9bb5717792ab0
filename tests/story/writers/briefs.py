"""Briefs as readers may send them, friendly and hostile."""

from __future__ import annotations

from hypothesis import strategies as st

from services.story.adapters.writers import Brief, WordCount

PLAIN = Brief(preferences=("cats", "the sea"), theme="courage", length=WordCount.SHORT, seed=7)

ODD_TEXTS = [
    "{0} {hero} {{}} %s $hero ${theme} $$",
    "line\r\nbreak\x00\x1b[31m\u2028end",
    "\u202eright to left\u202c",
    "👩‍👩‍👧‍👦" * 30,
    "“quoted” \"twice\" 'thrice'",
    "x" * 3000,
    "word " * 600,
    "# heading * star _ under `tick`",
    "…",
    " .,;:!? ",
]

text = st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=300))
briefs = st.builds(
    Brief,
    preferences=st.lists(text, max_size=7).map(tuple),
    theme=text,
    prompt=text,
    length=st.sampled_from(list(WordCount)),
    language=st.sampled_from(["en", "en-GB", "EN_us", ""]),
    title=st.none() | text,
    first_name=text,
    seed=st.integers(min_value=0, max_value=2**128 - 1),
)
