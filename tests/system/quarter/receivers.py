"""What stands for the people: a clock that is told the time, an HTTP receiver, a record of what came when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.team import Person
from services.notifier.channels import Channels
from services.notifier.letters import Letter, Outcome


class Clock:
    """The made-up world's time: stands still until it is told to be later."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def now(self) -> datetime:
        """Give the moment."""
        return self.moment

    def be(self, moment: datetime) -> None:
        """Be `moment`; time never goes back."""
        assert moment >= self.moment
        self.moment = moment


@dataclass(frozen=True)
class Arrival:
    """A message that reached somebody: its id is the alert's or the digest's."""

    at: datetime
    person: str
    channel: str
    id: str


@dataclass
class Received:
    """Everything that reached anybody, in the order it came."""

    now: Callable[[], datetime]
    arrivals: list[Arrival] = field(default_factory=list[Arrival])

    def note(self, person: str, channel: str, id: str) -> None:
        """Note a message that came now."""
        self.arrivals.append(Arrival(self.now(), person, channel, id))


class Wire(Channels):
    """The channels, but e-mail goes straight to the record: a mail server for each would cost minutes."""

    def __init__(self, received: Received) -> None:
        super().__init__(None, 10, 4, now=received.now)
        self._received = received

    async def send(self, channel: str, person: Person | None, letter: Letter) -> Outcome:
        """Take an e-mail, or post what is no e-mail to where the roster says."""
        if channel == "email" and person is not None:
            self._received.note(person.id, "email", letter.alert_id)
            return Outcome("delivered")
        return await super().send(channel, person, letter)


class HookServer:
    """A real HTTP server for signed webhooks: ``POST /<person's id>`` is noted and answered 204."""

    def __init__(self, received: Received) -> None:
        self._received = received
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> HookServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in tuple(self._open):
            writer.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """Give its address."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *lines = head.split("\r\n")
                headers = dict(each.lower().split(": ", 1) for each in lines if each)
                body = await reader.readexactly(int(headers["content-length"]))
                told: dict[str, Any] = msgspec.json.decode(body)["data"]
                self._received.note(line.split()[1].strip("/"), "webhook", told["id"])
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()
