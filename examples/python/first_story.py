"""Sign up, ask for a story, print it while it is written, and keep it as a file, with the `storymesh_client` library.

Usage: python examples/python/first_story.py

STORYMESH_EDGE names another edge (HOST:PORT), MAIL another folder of the local mail sink.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
import tempfile
from pathlib import Path

from storymesh.auth.v1.registration_service_pb2 import CompleteRegistrationRequest, CreateRegistrationRequest
from storymesh.file.v1.file_pb2 import FileState
from storymesh.story.v1.story_pb2 import STORY_LENGTH_SHORT
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, WatchStoryRequest

from storymesh_client import Storymesh, StorymeshError

EDGE = os.environ.get("STORYMESH_EDGE", "127.0.0.1:8080")
MAIL = Path(os.environ.get("MAIL", ".local/mail"))
PASSWORD = "correct horse battery staple"


def code_in_mail(address: str) -> str | None:
    """The six digits mailed to the address, or None if nothing came yet."""
    mails = (mail.read_text(errors="replace") for mail in MAIL.glob("*.eml"))
    codes = (re.search(r"code is (\d{6})", mail) for mail in mails if f"To: {address}" in mail)
    return next((code[1] for code in codes if code), None)


async def mailed_code(address: str) -> str:
    """The six digits mailed to the address. Raises TimeoutError after 30 s."""
    async with asyncio.timeout(30):
        while not (code := code_in_mail(address)):  # noqa: ASYNC110  # a folder sends no notice of new files
            await asyncio.sleep(0.2)
    return code


def written(text: str) -> Path:
    """A file of the text in a folder of its own."""
    page = Path(tempfile.mkdtemp(), "story.txt")
    page.write_text(text)
    return page


async def main() -> None:
    address = f"reader-{secrets.token_hex(4)}@example.com"
    async with Storymesh(EDGE) as mesh:
        created = await mesh.registrations.CreateRegistration(
            CreateRegistrationRequest(email=address, password=PASSWORD)
        )
        await mesh.registrations.CompleteRegistration(
            CompleteRegistrationRequest(registration_id=created.registration_id, code=await mailed_code(address))
        )
        await mesh.sign_in(address, PASSWORD, device_name="example")

        asked = await mesh.stories.CreateStory(CreateStoryRequest(theme="a lighthouse", length=STORY_LENGTH_SHORT))
        async for message in mesh.stories.WatchStory(WatchStoryRequest(story_id=asked.story.id)):
            match message.WhichOneof("event"):
                case "snapshot":
                    print(message.snapshot.text, end="", flush=True)
                case "chunk":
                    print(message.chunk.text, end="", flush=True)
                case "reset":
                    print("\n-- the story begins again --")
                case "done":
                    print(f"\n\n{message.done.story.title!r} is done.")
                    page = written(message.done.story.text)

        file = await mesh.upload(page)
        await mesh.download(file.id, page.with_suffix(".copy"))
        print(f"{file.name} is {FileState.Name(file.state)}")

        try:
            await mesh.stories.WatchStory(WatchStoryRequest(story_id="not an id")).read()
        except StorymeshError as error:
            print(f"{error.code().name} {error.reason}: {[each.field for each in error.violations]}")
        await mesh.sign_out()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except StorymeshError as error:
        hint = "`make up` starts a mesh; STORYMESH_EDGE names the edge of another (HOST:PORT)."
        sys.exit(f"{EDGE}: {error}\n{hint if error.code().name == 'UNAVAILABLE' else ''}".rstrip())
