"""HTTP calls of connectors: one request, one answer, within limits. No redirect is followed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from services.stage_service.subscriptions.connectors.delivery import Answer

ANSWER_BYTES_MAX = 1024 * 1024
TEXT_CHARACTERS_MAX = 1024
USER_AGENT = "Baton"
_decode = msgspec.json.Decoder().decode


class NoAnswerError(Exception):
    """No answer came: what was asked may have happened, or not. The text says why, without secrets."""


class Calls:
    """Sends requests over one session, which decides which addresses may be reached."""

    def __init__(self, open_session: Callable[[], aiohttp.ClientSession], timeout_s: float) -> None:
        self._open_session = open_session
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> Answer:
        """Send one request; raises NoAnswerError."""
        if self._session is None:
            self._session = self._open_session()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._session.request(
                    method, _exactly(url), headers={"user-agent": USER_AGENT} | headers,
                    data=body, allow_redirects=False,
                ) as response,
            ):  # fmt: skip
                content = await _read(response)
                named = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, named, _json(content), _text(content))
        except TimeoutError:
            raise NoAnswerError(f"no answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NoAnswerError(f"no answer ({type(error).__name__})") from None


def _exactly(url: str) -> Any:
    """Keep the escapes of the URL as they were made: `%40` in a path is not `@` to every server."""
    from yarl import URL

    return URL(url, encoded=True)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    found = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        found += chunk
        if len(found) > ANSWER_BYTES_MAX:
            raise aiohttp.ClientPayloadError("too large")
    return bytes(found)


def _json(content: bytes) -> Any:
    try:
        return _decode(content) if content else None
    except (msgspec.DecodeError, RecursionError):
        return None


def _text(content: bytes) -> str:
    text = content[: 4 * TEXT_CHARACTERS_MAX].decode("utf-8", "replace")[:TEXT_CHARACTERS_MAX]
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
