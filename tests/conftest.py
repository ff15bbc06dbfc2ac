"""What every test may ask for: a real PostgreSQL, a real Kafka, the data beside the project.

A part that this machine lacks makes its tests skip and say so; with ``BATON_REQUIRE_ALL=1`` (CI) that is
a failure.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings

from services.baton.embedded import EmbeddedPostgres
from tests.integration.kafka_broker import KafkaBroker, available

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
REQUIRE_ALL = os.environ.get("BATON_REQUIRE_ALL") == "1"


def examples(full: int) -> int:
    """Give how many examples a property is tried with: `full` in `make test-full`, else a quarter."""
    return full if os.environ.get("BATON_EXAMPLES") == "full" else max(full // 4, 5)


# CI tries the same examples each time, so that a red run is about the change; a developer's run goes on
# looking for new ones.
settings.register_profile("baton", max_examples=examples(100), derandomize=REQUIRE_ALL)
settings.load_profile("baton")

# As the service sets it: with the default, one eighth of a run went into looking for garbage.
gc.set_threshold(200_000, 20, 100)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make sure of the groups; keep what is collected, which stays, out of later looks for garbage."""
    for item in session.items if session.config.getoption("loadgroup", False) else ():
        mark = item.get_closest_marker("xdist_group")
        if mark is not None and not item.nodeid.endswith(f"@{mark.args[0]}"):
            raise RuntimeError("pytest-xdist scatters its groups: see pytest in pyproject.toml")
    gc.collect()
    gc.freeze()


# First, so that pytest-xdist, which asks the same hook, finds the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what Hypothesis drives, so that `make test-full` finds it; keep together what shares a fixture.

    The other tests of a file go to whichever worker is free: a module's fixture would be set up in each.
    Within a file those that share a parameter of such a fixture follow one another, in whatever order.
    """
    files = {item.path: place for place, item in reversed([*enumerate(items)])}
    items.sort(key=lambda item: (files[item.path], _shared_parameters(item)))
    for item in items:
        if _shared(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("property")


def _shared(item: pytest.Item) -> set[str]:
    """Give the names of the fixtures that the test shares with others of its file."""
    known: Any = getattr(item, "_fixtureinfo", None)
    found = known.name2fixturedefs.items() if known else ()
    return {name for name, d in found if d and d[-1].scope in ("module", "package")}


def _shared_parameters(item: pytest.Item) -> str:
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    return repr(sorted((name, str(parameters[name])) for name in _shared(item) & parameters.keys()))


def missing(what: str) -> NoReturn:
    """Skip the test for want of `what`, or fail where everything is required."""
    if REQUIRE_ALL:
        pytest.fail(f"required here and missing: {what}")
    pytest.skip(f"missing: {what}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server for this test run, with a migrated database to copy."""
    directory = Path(tempfile.mkdtemp(prefix=_prefix(os.getpid()), dir=_memory()))
    held = hold(directory)
    server = EmbeddedPostgres(directory, durable=False)
    try:
        server.start()
        _prepare(server)
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)
        os.close(held)


MEMORY = Path("/dev/shm")
ROOM = 2**30
"""Bytes that one worker's PostgreSQL may need: a database is 13 MB, a long run's some 100."""


def _memory() -> Path | None:
    """Give a directory whose files are in memory, or None where there is not room enough.

    A database is hundreds of files, made and removed for each test: on a disk's file system that alone
    can be half of a run. What runs that were killed left there is removed.
    """
    try:
        for path in MEMORY.glob(_prefix("*") + "*"):
            if is_left_over(path):
                shutil.rmtree(path, ignore_errors=True)
        found = os.statvfs(MEMORY)
        memory = Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]
    except (OSError, IndexError):
        return None
    free = min(found.f_bavail * found.f_frsize, int(memory) * 1024)
    needed = ROOM * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return MEMORY if free > needed and os.access(MEMORY, os.W_OK) else None


def hold(directory: Path) -> int:
    """Hold `directory` until the descriptor that this gives is closed, or the process ends."""
    found = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return found


def is_left_over(directory: Path) -> bool:
    """Say whether nobody is at `directory` any more: its process is gone, and nobody holds it.

    Containers may share the memory, and each has its own numbers of processes.
    """
    if not directory.is_dir() or Path(f"/proc/{directory.name.split('-')[2]}").exists():
        return False
    try:
        os.close(hold(directory))
    except OSError:
        return False
    return True


def _prefix(pid: int | str) -> str:
    return f"baton-test-{pid}-"


def _prepare(server: EmbeddedPostgres) -> None:
    server.ensure_database("template_baton")
    # In a process of its own: Alembic configures a loop and logging of this one otherwise.
    subprocess.run(
        [sys.executable, "-m", "services.baton.cli", "migrate"],
        check=True,
        cwd=ROOT,
        env=os.environ
        | {"BATON_DATABASE_URL": server.url("template_baton"), "BATON_LOG_LEVEL": "error"},
        stdout=subprocess.DEVNULL,
    )


@pytest.fixture(scope="session")
def done_with() -> list[str]:
    """Databases that nobody uses any more: dropped as the next is made, which saves a process each."""
    return []


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, done_with: list[str]) -> str:
    """The URL of an empty, migrated database that only this test uses."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.statement(
        *(f"DROP DATABASE IF EXISTS {left} WITH (FORCE)" for left in done_with),
        f"CREATE DATABASE {name} TEMPLATE template_baton STRATEGY FILE_COPY",
    )
    done_with[:] = [name]
    return postgres.url(name)


@pytest.fixture
def bare_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database without any schema."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.statement(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    postgres.statement(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of real data sets beside the project."""
    if not DATA.is_dir():
        missing(f"the real data sets in {DATA.name}/ beside the project")
    return DATA


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A real Apache Kafka with nothing on it, for one test module."""
    possible, which = available()
    if not possible:
        missing(f"Kafka: {which}")
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


def pytest_report_header() -> str:
    """Say which Kafka this run uses."""
    possible, which = available()
    return f"kafka: {which if possible else f'none ({which})'}"
