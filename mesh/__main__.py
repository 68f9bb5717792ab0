"""Checks the manifests before anything is derived from them, and tells the first fault in a sentence.

Usage: python -m mesh
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from mesh import event_routes
from mesh.catalog import manifests
from mesh.manifest import KitTables, ManifestError

_DEAD_LETTERS = "DeadLetterServicer"


def missing_modules() -> Iterator[str]:
    """What the programs that derive from the manifests import of every service."""
    for service, manifest in manifests().items():
        for module in ("config", "__main__", *(["migrations.env"] if manifest.database else [])):
            try:
                found = find_spec(f"services.{service}.{module}")
            except ModuleNotFoundError:
                found = None
            if found is None:
                yield f"services/{service}/{module.replace('.', '/')}.py is missing"


def without_dead_letters() -> Iterator[str]:
    """Services whose dead letters operators could not see: the operators' service asks every service that has the table."""
    for service, manifest in manifests().items():
        main = find_spec(f"services.{service}.__main__")
        served = main and main.origin and _DEAD_LETTERS in Path(main.origin).read_text(encoding="utf-8")
        if KitTables.INBOX in manifest.kit_tables and not served:
            yield f"services/{service}/__main__.py does not add {_DEAD_LETTERS}: its dead letters would be out of reach"


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m mesh",
        description="Check the manifests of all services, and tell the first fault in a sentence.",
    ).parse_args()
    try:
        event_routes.routes()
    except ManifestError as error:
        sys.exit(str(error))
    for fault in chain(missing_modules(), without_dead_letters()):
        sys.exit(fault)


if __name__ == "__main__":
    main()
