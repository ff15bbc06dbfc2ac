"""What the fake CRMs share: a real HTTP server, faults on order, and requests kept to be looked at.

A fake answers a wrong request as its vendor does, and notes in `complaints` what the vendor would have let
pass in silence: a test ends with none.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiohttp import web

from tests.fakes.clock import Clock


@dataclass
class Fault:
    """What happens to the next request that `step` fits (method and beginning of the path).

    `status`: this answer, and nothing happened. `lost`: it happens, and the connection ends without one.
    """

    method: str
    path: str
    status: int | None = None
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    lost: bool = False
    times: int = 1


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class RefusedError(Exception):
    """The vendor's refusal of a request."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers or {}


class FakeCrm(ABC):
    """A CRM; `async with` runs it on a port of its own. Whatever it dates has the time that `clock` tells."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        self.clock = clock or Clock()
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self.chance: Callable[[Seen], Fault | None] = lambda _: None
        """Gives the fault of a request for which none is ordered."""
        self.complaints: list[str] = []
        self.hold: asyncio.Event | None = None
        """Set by a test: writes take effect at once, and their answers wait for it."""
        self.held = asyncio.Event()
        self.changed: Callable[[], Awaitable[None]] | None = None
        """Called after each write that took effect, before its answer."""
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Any:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def writes(self) -> list[Seen]:
        """The requests that were no reading ones."""
        return [r for r in self.requests if r.method != "GET" and not self.is_reading(r)]

    def is_reading(self, seen: Seen) -> bool:
        """Whether a request that is no GET only reads."""
        return "token" in seen.path

    async def _handle(self, request: web.Request) -> web.Response:
        text = await request.text()
        try:
            body = json.loads(text) if "json" in request.content_type and text else text or None
        except ValueError:
            body = text
        seen = Seen(
            request.method, request.raw_path.partition("?")[0], dict(request.query),
            {n.lower(): v for n, v in request.headers.items()}, body,
        )  # fmt: skip
        self.requests.append(seen)
        fault = self._fault(seen)
        if fault is not None and fault.status is not None:
            return web.json_response(fault.body, status=fault.status, headers=fault.headers)
        before = self.version()
        try:
            status, answer = self.answer(seen)
            headers: dict[str, str] = {}
        except RefusedError as refused:
            status, answer, headers = refused.status, refused.body, refused.headers
        if self.version() != before:
            if self.changed is not None:
                await self.changed()
            if self.hold is not None:
                self.held.set()
                await self.hold.wait()
        if fault is not None and fault.lost:
            assert request.transport is not None
            request.transport.close()
        if answer is None:
            return web.Response(status=status, headers=headers)
        return web.json_response(answer, status=status, headers=headers)

    def _fault(self, seen: Seen) -> Fault | None:
        for fault in self.faults:
            if fault.times and seen.method == fault.method and seen.path.startswith(fault.path):
                fault.times -= 1
                return fault
        return self.chance(seen)

    @abstractmethod
    def answer(self, seen: Seen) -> tuple[int, Any]:
        """Answer a request; raises RefusedError."""

    @abstractmethod
    def version(self) -> int:
        """A number that grows with each change of a record."""

    def only(self, found: dict[str, Any], known: set[str], what: str) -> None:
        """Complain of names that the vendor does not document."""
        for name in set(found) - known:
            self.complaints.append(f"{what}: {name!r} is not documented")
