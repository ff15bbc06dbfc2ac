"""`python -m bench.receiver PORT`: takes posts as cheaply as Python can, and remembers when each came.

``POST /well...`` is answered 200 at once, ``/hangs...`` never, ``/fails...`` 500. ``GET /came`` gives what
was answered 200 since it was last asked, as JSON: [[path, webhook-id, monotonic seconds], ...].
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import ClassVar

import uvloop

_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_FAILED = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\nno"


class Receiver(asyncio.Protocol):
    """One connection."""

    came: ClassVar[list[tuple[str, str, float]]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].decode("latin-1")
            lines = head.split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:])
            length = int(headers.get("content-length", 0))
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._answer(lines[0].split(" ")[1], headers)

    def _answer(self, path: str, headers: dict[str, str]) -> None:
        if path == "/came":
            body = json.dumps(self.came).encode()
            self.came.clear()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
        elif path.startswith("/well"):
            self.came.append((path, headers.get("webhook-id", ""), time.monotonic()))
            self._transport.write(_OK)
        elif path.startswith("/fails"):
            self._transport.write(_FAILED)
        elif path == "/readyz":
            self._transport.write(_OK)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
