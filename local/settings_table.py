"""The README's table of settings, made from the settings classes, which alone know them.

Usage: python -m local.settings_table README.md     rewrites the table there
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from services.kit.settings import PREFIX, ServiceSettings

BEGIN = "<!-- settings: made by `make readme` -->"
END = "<!-- end of settings -->"
SERVICES = ("auth", "story", "notification", "ratelimit")


def table() -> str:
    """A Markdown table: each setting once, with the services that read it."""
    rows: dict[str, tuple[FieldInfo, list[str]]] = {}
    for service in SERVICES:
        for name, field in _fields(service):
            readers = rows.setdefault(name, (field, []))[1]
            if service not in readers:
                readers.append(service)
    lines = ["| Setting | Read by | Default | Meaning |", "|---|---|---|---|"]
    for name, (field, readers) in sorted(rows.items(), key=lambda row: (-len(row[1][1]), row[1][1], row[0])):
        by = "all" if len(readers) == len(SERVICES) else ", ".join(readers)
        lines.append(f"| `{PREFIX}{name.upper()}` | {by} | {_default(field)} | {field.description} |")
    return "\n".join(lines)


def replaced(readme: str) -> str:
    """The text with a fresh table between its marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _fields(service: str) -> Iterator[tuple[str, FieldInfo]]:
    config = importlib.import_module(f"services.{service}.config")
    for each in vars(config).values():
        if isinstance(each, type) and issubclass(each, ServiceSettings):
            yield from each.model_fields.items()


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, SecretStr | SecretBytes):
        value = value.get_secret_value()
    return f"`{value}`" if value not in ("", None) else ""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path = Path(sys.argv[1])
    path.write_text(replaced(path.read_text()))


if __name__ == "__main__":
    main()
