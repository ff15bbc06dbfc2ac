"""``python -m tests.system.quarter.process stage|notifier FILE``: a service whose time the test tells.

The services are built as `baton serve` builds them, with a `now` that reads the made-up time from FILE, eight
bytes shared with the test. When the time moves, what is due is looked for at once, beside the service's own
polling: so a second of the test is not spent on every half hour.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from services.baton.serve import serve
from services.contracts.logs import configure_logs

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LOOK_S = 0.003
BYTES = 8


class SharedClock:
    """The made-up time in a file that processes share: microseconds since 1970."""

    def __init__(self, file: Path, moment: datetime | None = None) -> None:
        if moment is not None:
            file.write_bytes(bytes(BYTES))
        with file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), BYTES)
        self._numbers = memoryview(self._shared).cast("q")
        if moment is not None:
            self.be(moment)

    @property
    def moment(self) -> datetime:
        """Give the moment."""
        return self.now()

    def now(self) -> datetime:
        """Give the moment."""
        return EPOCH + timedelta(microseconds=self._numbers[0])

    def be(self, moment: datetime) -> None:
        """Be `moment`; time never goes back."""
        at = (moment - EPOCH) // timedelta(microseconds=1)
        assert at >= self._numbers[0]
        self._numbers[0] = at


def stage(clock: SharedClock) -> tuple[FastAPI, str, int]:
    """Give the stage service, and where it listens."""
    from services.stage_service.app import create_app
    from services.stage_service.settings import StageSettings
    from services.stage_service.ticker import Ticker

    settings = StageSettings()  # pyright: ignore[reportCallIssue]  from the environment
    configure_logs("json", settings.log_level, "stage")
    app = create_app(settings, now=clock.now)

    def look() -> Awaitable[Any]:
        house = app.state.house
        return Ticker(house.pool, house.lane, clock.now).run_due()

    return _watching(app, clock, look), settings.host, settings.port


def notifier(clock: SharedClock) -> tuple[FastAPI, str, int]:
    """Give the notifier, and where it listens."""
    from services.notifier.app import create_app
    from services.notifier.settings import NotifierSettings

    settings = NotifierSettings()  # pyright: ignore[reportCallIssue]  from the environment
    configure_logs("json", settings.log_level, "notifier")
    app = create_app(settings, now=clock.now)

    async def look() -> None:
        app.state.house.dispatcher.wake()

    return _watching(app, clock, look), settings.notifier_host, settings.notifier_port


def _watching(app: FastAPI, clock: SharedClock, look: Callable[[], Awaitable[Any]]) -> FastAPI:
    """Have `look` done whenever the time has moved, while the app runs."""
    opened = app.router.lifespan_context

    async def watch() -> None:
        seen = EPOCH
        while True:
            if (now := clock.now()) != seen:
                seen = now
                with contextlib.suppress(Exception):  # not open yet, or the database is away
                    await look()
            await asyncio.sleep(LOOK_S)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[Any]:
        async with opened(app) as state:
            task = asyncio.create_task(watch())
            try:
                yield state
            finally:
                task.cancel()

    app.router.lifespan_context = lifespan
    return app


def main() -> None:
    """Serve one of them until killed."""
    clock = SharedClock(Path(sys.argv[2]))
    app, host, port = {"stage": stage, "notifier": notifier}[sys.argv[1]](clock)
    serve(app, host, port, 0.0)


if __name__ == "__main__":
    main()
