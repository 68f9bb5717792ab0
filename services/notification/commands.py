"""Commands by hand: previews of the letters."""

from __future__ import annotations

import argparse
from pathlib import Path

from kit.runtime.process import Argument, Command, CommandRefused

from .config import LetterSettings
from .model.letters import kinds, languages
from .model.letters.previews import PAGE, previews
from .model.rendering import Sender
from .operations import letters_of

_FOLDER = Argument("--folder", "where to write them; made if it is missing. Default: mails", Path)
_LANGUAGE = Argument("--language", "the only one to write, such as de. Default: all")


async def mails(settings: LetterSettings, arguments: argparse.Namespace) -> None:
    """Write previews of all kinds."""
    _write(settings, arguments.folder, kind="", language=arguments.language or "")


async def preview(settings: LetterSettings, arguments: argparse.Namespace) -> None:
    """Write the previews of one kind."""
    if arguments.kind.upper() not in kinds():
        raise CommandRefused(f"there is no kind {arguments.kind}: there are {', '.join(map(str.lower, kinds()))}")
    _write(settings, arguments.folder, kind=arguments.kind.upper(), language=arguments.language or "")


def _write(settings: LetterSettings, folder: Path | None, *, kind: str, language: str) -> None:
    if language and language not in languages():
        raise CommandRefused(f"no letter is written in {language}: there are {', '.join(languages())}")
    folder = folder or Path("mails")
    folder.mkdir(parents=True, exist_ok=True)
    files = previews(letters_of(settings), Sender(settings.mail_from), kind=kind, language=language)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    print(f"Open {(folder / PAGE).resolve()}: {len(files)} files are in its folder.")


COMMANDS = {
    "mails": Command(
        "write every mail in every language to a folder, and a page that shows them all",
        LetterSettings,
        mails,
        (_FOLDER, _LANGUAGE),
    ),
    "preview": Command(
        "write one kind of mail to a folder, and a page that shows it",
        LetterSettings,
        preview,
        (Argument("kind", "the kind, such as story_ready"), _FOLDER, _LANGUAGE),
    ),
}
