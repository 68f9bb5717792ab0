"""The facts that previews show in place of those of a real event: one for each name that templates use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

from ..notices import NOTICES
from .values import Facts
from .writing import kinds

NOW = datetime(2026, 11, 29, 18, 5, tzinfo=UTC)

TIME_ZONE = "Europe/Berlin"
"""Of the reader of all previews."""

_SAMPLES: Facts = {
    "first_name": "Ada",
    "code": "40718263",
    "expire_time": NOW + timedelta(minutes=10),
    "page_path": "/s/019ad1c2-7e55-7c1a-9d5e-3a1f0c9b7e21/kQ3vW8sYx2",
    "title": "The Lighthouse at the Edge of the World",
    "excerpt": (
        "Nobody had climbed the lighthouse since the winter of the great storm. So when Ada saw a light behind its highest "
        "window, small and steady like a star that had lost its way, she put on her boots, told the dog to be quiet, and went…"
    ),
    "reason": "CONTENT_REFUSED",
    "reset": False,
    "device_name": "Firefox on Linux",
    "ip": "198.51.100.7",
    "sign_in_time": NOW,
    "description": "The lamp in the hall",
    "stop_token": "sms1_dGhpcyBpcyBhIHNhbXBsZSBhbmQgc3RvcHMgbm90aGluZw",
    "stop_expire_time": NOW + timedelta(days=7),
}

_DIGEST: Facts = {
    "notices": [
        ("STORY_READY", _SAMPLES),
        ("STORY_FAILED", _SAMPLES),
        ("STORY_READY", {**_SAMPLES, "title": "<b>A</b>", "page_path": ""}),
    ],
    "more": 4,
}

_VARIANTS: Mapping[str, Mapping[str, Facts]] = {
    "DIGEST": {
        "single": {"notices": [("STORY_READY", _SAMPLES)], "more": 0},
        "long": {"notices": [("STORY_READY", _SAMPLES)] * 50, "more": 9000},
    },
    "PASSWORD_CHANGED": {"reset": {"reset": True}},
    "STORY_READY": {
        "bare": {"excerpt": "", "first_name": "", "page_path": ""},
        "long": {
            "first_name": "Wolfeschlegelsteinhausenbergerdorff",
            "title": "灯台の物語 " * 20,
            "excerpt": "Donaudampfschifffahrtsgesellschaftskapitänskajütenfensterputzlappen" * 3,
        },
        "right-to-left": {"title": "حكاية المنارة", "excerpt": "لم يصعد أحد إلى المنارة منذ شتاء العاصفة الكبرى…"},
    },
    "NEW_DEVICE": {"odd": {"device_name": 'See https://win.example "now" <b>', "ip": "2001:db8::a:b"}},
}
"""Other facts of a kind, with which it looks different."""

_UNSUBSCRIBE = "https://stories.example/v1/unsubscribe/c2FtcGxl"


def samples() -> Iterator[tuple[str, str, Facts, str]]:
    """Each kind, the name of a preview of it, its facts and where its reader unsubscribes."""
    for kind in kinds():
        unsubscribe_url = "" if NOTICES[kind].security else _UNSUBSCRIBE
        facts = {**_SAMPLES, **_DIGEST} if kind == "DIGEST" else _SAMPLES
        yield kind, kind.lower(), facts, unsubscribe_url
        for variant, others in _VARIANTS.get(kind, {}).items():
            yield kind, f"{kind.lower()}-{variant}", {**facts, **others}, unsubscribe_url
