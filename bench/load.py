"""Load generators: wrk for single events, a small keep-alive client for batches and paced events."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

WRK_MISSING = "wrk is not installed (Debian and Ubuntu: apt install wrk)"
RESEND_MAX = 5
RESEND_AFTER_S = 0.2
_SCRIPT = Path(__file__).with_name("post.lua")


def has_wrk() -> bool:
    """Tell whether wrk can be run."""
    return shutil.which("wrk") is not None


@dataclass(frozen=True)
class Load:
    """What wrk saw: answers a second, and latencies in milliseconds."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Give requests a second."""
        return self.requests / self.seconds


async def wrk(
    url: str, key: str, prefix: str, *, seconds: float, connections: int, stored: int = 0
) -> Load:
    """Post single events to the service at `url`; `prefix` has to be new in every round.

    Raises RuntimeError when a request was refused or broken: such a round measures nothing.
    """
    arguments = (key, prefix, str(stored), str(abs(hash(prefix)) % 10**6))
    return await _wrk(url, _SCRIPT, arguments, seconds, connections)


async def wrk_prepared(url: str, file: Path, *, seconds: float, connections: int) -> Load:
    """Post the requests in `file` (see ``prepared.lua``) to the service at `url`; as `wrk`."""
    return await _wrk(url, _SCRIPT.with_name("prepared.lua"), (str(file),), seconds, connections)


async def _wrk(
    url: str, script: Path, arguments: tuple[str, ...], seconds: float, connections: int
) -> Load:
    process = await asyncio.create_subprocess_exec(
        "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "5s",
        "-s", str(script), url, "--", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    text = output.decode(errors="replace")
    line = next((part[1:] for part in text.splitlines() if part.startswith("@{")), None)
    if process.returncode or line is None:
        raise RuntimeError(f"wrk failed:\n{text}")
    said = json.loads(line)
    if said["refused"] or said["broken"] or not said["requests"]:
        raise RuntimeError(f"not every request was answered 200: {said}")
    return Load(said["requests"], said["seconds"], said["p50_ms"], said["p99_ms"])


class Caller:
    """One keep-alive HTTP/1.1 connection that posts to ``/v1/events``."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._head = head
        self.resent = 0

    @classmethod
    async def open(cls, url: str, key: str, content_type: str) -> Caller:
        """Connect to the service at `url`."""
        at = urlsplit(url)
        reader, writer = await asyncio.open_connection(at.hostname, at.port, limit=2**22)
        head = (
            f"POST /v1/events HTTP/1.1\r\nhost: {at.netloc}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: {content_type}\r\ncontent-length: "
        )
        return cls(reader, writer, head.encode())

    async def post(self, body: bytes) -> bytes:
        """Post `body` until it is answered 200 and give the answer's body.

        A 503 is sent again, as every client should, and counted in `resent`; any other answer raises
        RuntimeError.
        """
        for _ in range(RESEND_MAX):
            status, answer = await self._once(body)
            if status == 200:
                return answer
            if status != 503:
                break
            self.resent += 1
            await asyncio.sleep(RESEND_AFTER_S)
        raise RuntimeError(f"answered {status}: {answer[:500]!r}")

    async def _once(self, body: bytes) -> tuple[int, bytes]:
        self._writer.write(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
        head = await self._reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(head[9:12]), await self._reader.readexactly(length)

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()
