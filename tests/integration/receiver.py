"""A real HTTP server that keeps what it is sent and answers as a test wants: a subscriber's endpoint."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Request:
    """What a receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    transport: asyncio.BaseTransport | None = None

    def hang_up(self) -> None:
        """Close the connection without an answer."""
        if self.transport is not None:
            self.transport.close()

    @property
    def id(self) -> str:
        """Its ``webhook-id``."""
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        """Its body."""
        return json.loads(self.body)


Reaction = Callable[[Request], Awaitable[web.StreamResponse] | web.StreamResponse]


@dataclass
class Receiver:
    """An HTTP server; `react` decides what it answers, by path if there is a reaction for it."""

    react: Reaction = field(default=lambda _: web.Response(text="thanks"))
    by_path: dict[str, Reaction] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    taken: list[Request] = field(default_factory=list)
    """Those answered 2xx."""
    keep: bool = True
    url: str = ""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, raw: web.Request) -> web.StreamResponse:
        """Serve a request."""
        headers = {name.lower(): value for name, value in raw.headers.items()}
        request = Request(raw.path, headers, await raw.read(), time.perf_counter(), raw.transport)
        if self.keep:
            self.requests.append(request)
        answer = self.by_path.get(raw.path, self.react)(request)
        if not isinstance(answer, web.StreamResponse):
            answer = await answer
        if 200 <= answer.status < 300:
            self.taken.append(request)
        self._news.set()
        return answer

    async def until(self, condition: Callable[[], Any], what: str, within_s: float = 20.0) -> None:
        """Wait until `condition` holds; it is looked at after each request."""
        deadline = time.monotonic() + within_s
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"not within {within_s} s: {what}; {len(self.taken)} taken"
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), min(left, 0.05))
            except TimeoutError:
                continue


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Receiver]:
    """Run a receiver on a port of its own."""
    receiver = Receiver()
    app = web.Application(client_max_size=2**22)
    app.router.add_route("*", "/{rest:.*}", receiver.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    await site.start()
    number = runner.addresses[0][1]
    receiver.url = f"http{'s' if tls else ''}://127.0.0.1:{number}"
    try:
        yield receiver
    finally:
        await runner.cleanup()


def answering(status: int, **headers: str) -> Callable[[Request], web.Response]:
    """Give a reaction that always answers so."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: web.Response(status=status, headers=named)


def failing(*ids: str) -> Callable[[Request], web.Response]:
    """Give a reaction that refuses the events with `ids`."""
    return lambda request: web.Response(status=500 if request.id in ids else 200)


def ids_of(requests: list[Request]) -> list[str]:
    """The events' ids in the order they came."""
    return [request.id for request in requests]
