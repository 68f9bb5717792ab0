"""Generates from the settings classes the table in docs/settings.md, the list of all names, and which process reads which.

Usage: python -m local.settings_table             rewrites the three
       python -m local.settings_table --check     fails if one of them is not up to date
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from deploy import process_settings
from kit.runtime import setting_names
from kit.runtime.settings import PREFIX, ProcessSettings, ServiceSettings
from local.settings import REPOSITORY, LocalSettings
from mesh.catalog import manifests
from mesh.services import SERVICES

BEGIN = "<!-- settings: made by `make settings` -->"
END = "<!-- end of settings -->"

NOT_IN_CLASSES = ("SECRETS_DIR", "EDGE", "TOKENS", "PUBLISH_ADDRESS", "S3_PORT")
"""Variables in no settings class: the folder of secrets, and those of the `storymesh` command and of docker-compose.yml."""

PAGE = REPOSITORY / "docs" / "settings.md"
NAMES = Path(setting_names.__file__)
OF_PROCESSES = Path(process_settings.__file__)


def table() -> str:
    """The settings as a Markdown table: each once, with the services that read it."""
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


def replaced(page: str) -> str:
    """The text, with a new table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _fields(service: str) -> Iterator[tuple[str, FieldInfo]]:
    config = importlib.import_module(f"services.{service}.config")
    for each in vars(config).values():
        if isinstance(each, type) and issubclass(each, ProcessSettings):
            yield from each.model_fields.items()


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, SecretStr | SecretBytes):
        value = value.get_secret_value()
    return f"`{value}`" if value not in ("", None) else ""


def names() -> set[str]:
    """Names of all settings of the mesh's processes, the runner and the client."""
    of_services = {name for service in SERVICES for name, _ in _fields(service)}
    targets = {f"{service}_target" for service in SERVICES}
    return {PREFIX + name.upper() for name in of_services.union(targets, LocalSettings.model_fields, NOT_IN_CLASSES)}


def names_module() -> str:
    """The source of `kit.runtime.setting_names`, one name per line."""
    listed = "".join(f'        "{name}",\n' for name in sorted(names()))
    return f'"""{setting_names.__doc__}"""\n\nNAMES = frozenset(\n    {{\n{listed}    }}\n)\n'


def settings_of(process: str) -> type[ServiceSettings]:
    """The settings class of a server, named as its service, or of its workers, `SERVICE-worker`."""
    config = importlib.import_module(f"services.{process.removesuffix('-worker')}.config")
    classes = [each for each in vars(config).values() if isinstance(each, type) and each.__module__ == config.__name__]
    found = [each for each in classes if issubclass(each, ServiceSettings)]
    own = [each for each in found if each.__name__.endswith("WorkerSettings") == process.endswith("-worker")]
    # A service with one class uses it for both. What several processes share stands in classes from which theirs derive.
    own = own or found
    return next(each for each in own if not any(issubclass(other, each) for other in own if other is not each))


def processes_module() -> str:
    """The source of `deploy.process_settings`, one setting per line."""
    text = f'"""{process_settings.__doc__}"""\n\nSETTINGS = {{\n'
    for service, manifest in manifests().items():
        for process in (service, f"{service}-worker")[: 1 + bool(manifest.workers)]:
            listed = "".join(f'        "{name.upper()}",\n' for name in sorted(settings_of(process).model_fields))
            text += f'    "{process}": (\n{listed}    ),\n'
    return text + "}\n"


def main() -> None:
    wanted = {PAGE: replaced(PAGE.read_text()), NAMES: names_module(), OF_PROCESSES: processes_module()}
    stale = [path for path, text in wanted.items() if path.read_text() != text]
    match sys.argv[1:]:
        case []:
            for path in stale:
                path.write_text(wanted[path])
        case ["--check"]:
            if stale:
                sys.exit(
                    f"{' and '.join(path.name for path in stale)} is not what the settings say; run: make settings"
                )
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
