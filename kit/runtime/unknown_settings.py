"""Refuses names that look like settings and are none: a misspelt setting would leave its default in force unnoticed.

Every name of the mesh is known to every process, because processes often share one environment.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping

from .setting_names import NAMES

PREFIX = "STORYMESH_"

_INJECTED = re.compile(
    r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)=|\w+_PORT=(tcp|udp)://", re.A
)
"""What Kubernetes tells each container about Services, whose names may begin with storymesh- as well."""

_SECRET = re.compile(r"storymesh_[a-z0-9_]+")
"""Form of a secret's file. Others, such as an editor's copies, are nobody's setting."""


def in_environment(environment: Mapping[str, str], *, also: Collection[str] = ()) -> list[tuple[str, str]]:
    """The variables that are no setting, each with a sentence; `also` are names that only this process knows."""
    known = NAMES.union(also)
    return [
        (name, f"is no setting; the nearest one is {nearest(name, known)}")
        for name, value in sorted(environment.items())
        if name.upper().startswith(PREFIX) and name not in known and not _INJECTED.match(f"{name}={value}")
    ]


def in_folder(files: Iterable[str], *, also: Collection[str] = ()) -> list[tuple[str, str]]:
    """The same for the files of a folder of secrets, which are named like settings in lower case."""
    known = NAMES.union(also)
    return [
        (name, f"a secret's file is named like no setting; the nearest name is {nearest(name, known).lower()}")
        for name in sorted(files)
        if _SECRET.fullmatch(name) and name.upper() not in known
    ]


def nearest(name: str, known: Collection[str]) -> str:
    """The known name that is spelt most alike, the common beginning left aside."""
    ends = {each.removeprefix(PREFIX): each for each in sorted(known)}
    (found,) = difflib.get_close_matches(name.upper().removeprefix(PREFIX), ends, n=1, cutoff=0.0)
    return ends[found]
