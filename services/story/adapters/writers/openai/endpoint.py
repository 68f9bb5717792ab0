"""Validation of an endpoint's URL and key at start, before the first story fails by them."""

from __future__ import annotations

from urllib.parse import urlsplit

from .. import Refusal, WriterRefused

_BASE_URL = "STORYMESH_OPENAI_BASE_URL"
_API_KEY = "STORYMESH_OPENAI_API_KEY"
_MODEL = "STORYMESH_OPENAI_MODEL"


def check(base_url: str, api_key: str, model: str) -> None:
    """Raise WriterRefused (WRITER_MISCONFIGURED) with a sentence that names the faulty setting and never quotes the key.

    The HTTP library would report each fault as a failed request, which is retried, and would quote a key that is no valid header.
    """
    if missing := [name for name, value in ((_API_KEY, api_key), (_MODEL, model)) if not value]:
        raise _misconfigured(f"the openai writer needs {' and '.join(missing)}")
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise _misconfigured(f"{_API_KEY} holds white space or a character that no key has")
    if problem := _problem_of_url(base_url):
        raise _misconfigured(f"{_BASE_URL} {problem}")


def _problem_of_url(base_url: str) -> str | None:
    if not base_url:
        return None
    try:
        url = urlsplit(base_url)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable or not base_url.isprintable() or " " in base_url:
        return "is no address: it needs a form such as https://host/v1"
    if url.username is not None:
        return f"holds a user's name: what opens the endpoint belongs into {_API_KEY}"
    if url.query or url.fragment:
        return "holds more than an address and a path, which is lost as paths are added to it"
    if url.path.rstrip("/").endswith("/completions"):
        return "names the method too: it ends before /chat/completions"
    return None


def _misconfigured(sentence: str) -> WriterRefused:
    return WriterRefused(Refusal.WRITER_MISCONFIGURED, sentence)
