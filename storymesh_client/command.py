"""The `storymesh` command."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import getpass
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from grpc import StatusCode
from storymesh.auth.v1 import account_service_pb2, key_service_pb2, session_service_pb2
from storymesh.auth.v1.user_pb2 import Role, User

from . import file_commands, limits, printing, reading
from .client import DEFAULT_TARGET, Storymesh
from .errors import StorymeshError, TransferFailed
from .tokens import FileTokens, TokenFileError, default_path

FAILED, MISUNDERSTOOD, NOT_SIGNED_IN, UNREACHABLE, INTERRUPTED = 1, 2, 3, 4, 130

_EXIT_CODES = """\
exit codes:
  0    done
  1    refused, the story was not finished, or the file was not transferred
  2    the command, or the name of a variable, was not understood
  3    nobody is signed in, or the session has ended
  4    the mesh, or the store of files, does not answer
  130  interrupted

Tokens are kept in the file that STORYMESH_TOKENS names, else in storymesh/tokens.json below
XDG_CONFIG_HOME or ~/.config. Only its owner can read it.
"""

VARIABLES = {"EDGE": "STORYMESH_EDGE", "TOKENS": "STORYMESH_TOKENS"}
_LIKENESS = 0.75
"""Similarity above which a variable counts as a misspelt one of these. The environment may also hold other settings of a mesh."""

_LENGTHS = ("short", "medium", "long")
_LONGEST_DEVICE_NAME = 64


class Failed(Exception):
    """A failure of the command, as one sentence for the user."""


def parser() -> argparse.ArgumentParser:
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--edge",
        metavar="HOST:PORT",
        default=os.environ.get("STORYMESH_EDGE") or DEFAULT_TARGET,
        help=f"where the mesh is (STORYMESH_EDGE, {DEFAULT_TARGET})",
    )
    encryption = place.add_mutually_exclusive_group()
    encryption.add_argument(
        "--tls", action="store_true", default=None, help="encrypt; so it is unless the mesh is on this machine"
    )
    encryption.add_argument(
        "--plaintext", dest="tls", action="store_false", help="do not encrypt: whoever is on the way reads passwords"
    )
    place.add_argument("--ca", type=Path, metavar="FILE", help="trust these certificates (PEM) instead of the system's")
    listing = argparse.ArgumentParser(add_help=False)
    listing.add_argument("--json", action="store_true", help="print JSON instead of a table")

    top = argparse.ArgumentParser(
        prog="storymesh",
        description="A Storymesh from the terminal.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    sign_in = _add(commands, "sign-in", "Sign in and keep the tokens", place)
    sign_in.add_argument("login", help="the e-mail address or the username")
    proof = sign_in.add_mutually_exclusive_group()
    proof.add_argument(
        "--password-stdin", action="store_true", help="read the password from the first line of standard input"
    )
    proof.add_argument(
        "--code", action="store_true", help="without a password: mail a code to the address, and ask for it"
    )
    sign_in.add_argument(
        "--device-name",
        default=f"storymesh on {platform.node()}"[:_LONGEST_DEVICE_NAME],
        metavar="NAME",
        help="what the list of sessions shows (%(default)s)",
    )
    _add(commands, "sign-out", "End the session", place)
    _add(commands, "whoami", "Show the account", place, listing)

    sessions = _group(commands, "sessions", "See and end the sessions of the account")
    _add(sessions, "list", "List the devices that are signed in", place, listing)
    revoke = _add(sessions, "revoke", "Sign a device out", place)
    revoke.add_argument("session_id", metavar="ID", help="from the list")
    _add(sessions, "revoke-others", "Sign every device out but this one", place)

    auth = _group(commands, "auth", "Operate the signing keys; for administrators")
    _add(auth, "rotate-keys", "Replace the signing key by its successor", place)
    drop = _add(auth, "drop-key", "Withdraw a key that has leaked: whatever it signed is refused", place)
    drop.add_argument("kid", metavar="KID", help="the key's id, as in the key set")

    operated = _group(commands, "limits", "Ask the rate limiter and change what it does; for administrators")
    limits.add(operated, place, listing)

    files = _group(commands, "files", "Upload and download files")
    file_commands.add(files, place, listing)

    stories = _group(commands, "stories", "Ask for stories and read them")
    _add(stories, "list", "List the stories, newest first", place, listing)
    ask = _add(stories, "ask", "Ask for a story and read it while it is written", place)
    ask.add_argument("--theme", default="", help="what it is about")
    ask.add_argument("--prompt", default="", help="further wishes")
    ask.add_argument(
        "--preference", action="append", default=[], metavar="WORDS", help="what it is to please; up to 5 times"
    )
    ask.add_argument("--length", choices=_LENGTHS, help="about 150, 350 or 700 words (medium)")
    ask.add_argument("--language", default="", metavar="TAG", help="such as en-GB or pt-BR, if the mesh writes it (en)")
    ask.add_argument("--no-watch", action="store_true", help="print the story's id instead of waiting for it")
    watch = _add(stories, "watch", "Read a story, while it is written if it still is", place)
    watch.add_argument("story_id", metavar="ID", help="from the list")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = parser().parse_args(arguments)
    if fault := misspelt(os.environ):
        print(fault, file=sys.stderr)
        return MISUNDERSTOOD
    try:
        return asyncio.run(_execute(options))
    except StorymeshError as error:
        print(printing.sentence(error, options.edge), file=sys.stderr)
        return _exit_code(error)
    except (Failed, TokenFileError, TransferFailed) as failure:
        print(printing.plain(str(failure)), file=sys.stderr)
        return UNREACHABLE if isinstance(failure, TransferFailed) and failure.may_resume else FAILED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reading program, such as `head`, has closed the pipe. Python flushes stdout at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def misspelt(environment: Iterable[str]) -> str:
    """A sentence about a misspelt variable, which would otherwise be ignored without notice; empty if there is none."""
    for name in environment:
        beginning, _, end = name.upper().partition("_")
        if beginning == "STORYMESH" and name not in VARIABLES.values():
            for meant in difflib.get_close_matches(end, VARIABLES, n=1, cutoff=_LIKENESS):
                return f"{name} has no meaning; the nearest variable that has one is {VARIABLES[meant]}."
    return ""


async def _execute(options: argparse.Namespace) -> int:
    async with Storymesh(
        options.edge,
        tls=options.tls,
        root_certificates=_certificates(options.ca),
        tokens=FileTokens(default_path(os.environ)),
        user_agent=f"storymesh-cli {platform.system()}",
    ) as mesh:
        match options.command, getattr(options, "verb", ""):
            case "sign-in", _:
                user = await _sign_in(mesh, options)
                print(f"Signed in as {printing.plain(user.email)}.")
            case "sign-out", _:
                was_signed_in = mesh.signed_in
                await mesh.sign_out()
                print("Signed out." if was_signed_in else "Nobody was signed in.")
            case "whoami", _:
                user = (await mesh.accounts.GetAccount(account_service_pb2.GetAccountRequest())).user
                fields = [
                    ("email", user.email),
                    ("username", user.username),
                    ("id", user.id),
                    ("role", Role.Name(user.role)),
                ]
                print(printing.as_json(user) if options.json else printing.fields(fields))
            case "sessions", verb:
                await _sessions(mesh, verb, options)
            case "auth", "rotate-keys":
                rotated = await mesh.keys.RotateKeys(key_service_pb2.RotateKeysRequest())
                print(f"{rotated.kid} signs from {printing.time(rotated.activate_time)} on.")
            case "auth", _:
                dropped = await mesh.keys.DropKey(key_service_pb2.DropKeyRequest(kid=options.kid))
                print(f"{options.kid} is withdrawn; {dropped.active_kid} signs now.")
            case "limits", _:
                await limits.run(mesh, options)
            case "files", _:
                await file_commands.run(mesh, options)
            case _, "list":
                print(printing.stories(await reading.all_stories(mesh), as_json=options.json))
            case _, verb:
                return await _read(mesh, verb, options)
    return 0


async def _sessions(mesh: Storymesh, verb: str, options: argparse.Namespace) -> None:
    match verb:
        case "list":
            print(printing.sessions(await reading.all_sessions(mesh), as_json=options.json))
        case "revoke":
            request = session_service_pb2.RevokeSessionRequest(session_id=options.session_id)
            await mesh.sessions.RevokeSession(request)
            print("Signed out there.")
        case _:
            answer = await mesh.sessions.RevokeOtherSessions(session_service_pb2.RevokeOtherSessionsRequest())
            print(f"Signed out on {answer.revoked_count} other device{'' if answer.revoked_count == 1 else 's'}.")


async def _read(mesh: Storymesh, verb: str, options: argparse.Namespace) -> int:
    story_id = await reading.ask(mesh, options) if verb == "ask" else options.story_id
    if verb == "ask" and options.no_watch:
        print(story_id)
        return 0
    story = await reading.watch(mesh, story_id, sys.stdout)
    if story.failure_reason:
        raise Failed(f"The story was given up: {story.failure_reason}.")
    return 0 if reading.completed(story) else FAILED


async def _sign_in(mesh: Storymesh, options: argparse.Namespace) -> User:
    name = options.device_name
    if not options.code:
        return await mesh.sign_in(options.login, _password(options), device_name=name)
    challenge_id = await mesh.mail_code(options.login)
    print(
        f"A code is on its way to {printing.plain(options.login)}, if that is the address of an account.",
        file=sys.stderr,
    )
    print("Code: ", end="", file=sys.stderr, flush=True)
    # Read in a thread, because a blocked event loop cannot keep the connection alive.
    code = (await asyncio.to_thread(sys.stdin.readline)).strip()
    if not code:
        raise Failed("No code was given.")
    return await mesh.sign_in_with_code(options.login, challenge_id, code, device_name=name)


def _password(options: argparse.Namespace) -> str:
    """Reads the password from standard input or the terminal, never from an argument, which other users of the machine can see."""
    if options.password_stdin:
        password = sys.stdin.readline().removesuffix("\n").removesuffix("\r")
    else:
        try:
            password = getpass.getpass("Password: ")
        except EOFError:
            password = ""
    if not password:
        raise Failed("No password was given.")
    return password


def _certificates(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror}.") from None


def _exit_code(error: StorymeshError) -> int:
    if printing.needs_sign_in(error):
        return NOT_SIGNED_IN
    if error.code() in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED):
        return UNREACHABLE
    return FAILED


def _group(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, description: str
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    group = commands.add_parser(name, help=description, description=f"{description}.")
    return group.add_subparsers(dest="verb", required=True, metavar="COMMAND")


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    description: str,
    *parents: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=description, description=f"{description}.", parents=list(parents))
