"""`baton events export`: the stored lead events as Parquet, with all that a fold of them needs.

One snapshot, beside live traffic; some hundred leads at a time, whatever there is of them. A directory
that has its ``baton.json`` is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import asyncpg
import msgspec
from rich.console import Console
from rich.progress import Progress

from services.baton.command import run
from services.stage_service.shelf import Shelf
from services.stage_service.simulations import history
from services.stage_service.simulations.frames import (
    EVENT_COLUMNS,
    FORMAT,
    JOURNEY_COLUMNS,
    Exported,
    PublishedText,
    history_of,
)

LEADS_A_TIME = 500
ROWS_A_FILE = 250_000
ABOUT = "baton.json"
MISSING = "Parquet needs pyarrow: pip install 'baton[export]'"


def command(directory: Path, database_url: str) -> None:
    """Run `baton events export`: progress on the terminal, and what was written.

    Raises ImportError without pyarrow, and FileExistsError.
    """
    import pyarrow as _  # noqa: F401  known to be missing before anything is read

    _made_empty(directory)
    console = Console(highlight=False)
    with Progress(console=console, transient=True) as bar:
        row = bar.add_task("exporting", total=None)
        about = run(export_parquet(
            database_url, directory,
            progress=lambda done, total: bar.update(row, completed=done, total=total),
        ))  # fmt: skip
    console.print(
        f"{about.events:,} events and {about.journeys:,} journeys of {about.leads:,} leads in {directory}"
    )


async def export_parquet(
    database_url: str,
    directory: Path,
    *,
    rows_a_file: int = ROWS_A_FILE,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write ``events/`` and ``journeys/`` as Parquet and ``baton.json`` into the empty `directory`.

    Gives what ``baton.json`` says. `progress` hears (leads done, leads at all). Raises ImportError without
    pyarrow, FileExistsError, OSError, and what the database raises.
    """
    import pyarrow as pa

    utc = pa.timestamp("us", tz="UTC")
    kinds = {"time": utc, "recorded_at": utc, "epoch": pa.int32()}
    _made_empty(directory)
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            total = await history.count_leads(connection, None)
            done = 0
            after = history.NONE_YET
            with (
                _Table(directory / "events", EVENT_COLUMNS, kinds, rows_a_file) as events,
                _Table(directory / "journeys", JOURNEY_COLUMNS, {}, rows_a_file) as journeys,
            ):
                while ids := await history.lead_ids(connection, None, after, "", LEADS_A_TIME):
                    events.write(await history.event_rows(connection, ids))
                    journeys.write(_journeys(await history.past_of(connection, ids)))
                    after, done = ids[-1], done + len(ids)
                    if progress is not None:
                        progress(done, total)
            about = await _about(connection, done, events.rows, journeys.rows)
    finally:
        await connection.close()
    (directory / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(about)) + b"\n")
    return about


def _made_empty(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty: name a new directory")


class _Format(msgspec.Struct):
    format: int


def read_about(directory: Path) -> Exported:
    """Read ``baton.json`` of an export.

    Raises OSError, msgspec.ValidationError, ValueError when it is of another format.
    """
    text = (directory / ABOUT).read_bytes()
    found = msgspec.json.decode(text, type=_Format).format
    if found != FORMAT:
        raise ValueError(f"{directory / ABOUT} has the format {found}, not {FORMAT}: export again")
    return msgspec.json.decode(text, type=Exported)


def _journeys(past: dict[str, dict[str, Any]]) -> Iterable[tuple[Any, ...]]:
    for lead_id, journeys in past.items():
        for one in journeys.values():
            moves, handoffs = history_of(one.moves, one.handoffs)
            yield (
                lead_id, one.playbook, one.key, one.stage, one.furthest, moves.decode(),
                handoffs.decode(),
            )  # fmt: skip


async def _about(connection: Any, leads: int, events: int, journeys: int) -> Exported:
    shelf = Shelf()
    await shelf.load(connection)
    active = {epoch: shelf.at(epoch) for epoch in range(shelf.epoch + 1)}
    versions = {(p.name, p.version): p for known in active.values() for p in known.values()}
    return Exported(
        FORMAT, datetime.now(UTC), leads, events, journeys,
        [
            PublishedText(p.name, p.version, p.source, dict(p.renames).get(p.version, {}))
            for p in versions.values()
        ],
        {epoch: {p.name: p.version for p in known.values()} for epoch, known in active.items()},
    )  # fmt: skip


class _Table:
    """A directory of Parquet files of `rows_a_file` rows; what is written at once is a row group."""

    def __init__(
        self, directory: Path, columns: tuple[str, ...], kinds: dict[str, Any], rows_a_file: int
    ) -> None:
        import pyarrow as pa

        self._directory = directory
        self._schema = pa.schema([(c, kinds.get(c, pa.string()), False) for c in columns])
        self._rows_a_file = rows_a_file
        self._writer: Any = None
        self._in_file = 0
        self._files = 0
        self.rows = 0

    def __enter__(self) -> _Table:
        self._directory.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if kind is None and not self._files:
            self._open()  # an engine cannot read a directory without any file
        self._close()

    def write(self, rows: Iterable[Any]) -> None:
        """Write rows, their values in the order of the columns."""
        import pyarrow as pa

        columns = list(zip(*rows, strict=True))
        if not columns:
            return
        writer = self._writer
        if writer is None or self._in_file >= self._rows_a_file:
            writer = self._open()
        arrays = [pa.array(v, f.type) for v, f in zip(columns, self._schema, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._in_file += len(columns[0])
        self.rows += len(columns[0])

    def _open(self) -> Any:
        from pyarrow import parquet

        self._close()
        file = self._directory / f"part-{self._files:05}.parquet"
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._files += 1
        self._in_file = 0
        return self._writer

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
