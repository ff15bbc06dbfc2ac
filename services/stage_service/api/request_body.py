"""Reading a request's body within its limits, and unpacking it: what every hot-path endpoint does."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from services.contracts.problems import Defect, shown

BODY_BYTES_MAX = 1024 * 1024
EXPANSION_RATIO_MAX = 100
"""Packed JSON of real senders is 5 to 30 times smaller; a bomb 1,000 times."""
EXPANSION_FREE_BYTES = 64 * 1024
GZIP_MEMBERS_MAX = 64
"""What follows a member is copied once more: of a body of empty ones that would be seconds of work."""
_STEP_BYTES = 64 * 1024

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class TooLargeError(Exception):
    """The body is over the limit; the rest of it is not read."""


class GoneError(Exception):
    """The sender went away before the body was complete; nobody is left to answer."""


def is_too_large(content_length: bytes) -> bool:
    """Tell from the header ``Content-Length`` that the body is over the limit."""
    digits = content_length.lstrip(b"0")
    return digits.isdigit() and (len(digits) > 18 or int(digits) > BODY_BYTES_MAX)


async def read_body(receive: Receive) -> bytes:
    """Read the whole body; raises TooLargeError as soon as it is over 1 MiB, and GoneError."""
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            raise TooLargeError
        chunks.append(chunk)
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def unpacked(body: bytes, encoding: bytes) -> bytes | Defect:
    """Undo the ``Content-Encoding`` `encoding`: gzip, deflate, or none.

    Raises TooLargeError when it unpacks to over 1 MiB, or to more than 100 times its size.
    """
    encoding = encoding.strip().lower()
    if encoding in (b"", b"identity"):
        return body
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        return Defect(
            "unsupported-encoding", "content-encoding", "this compression is not read here",
            "Send the body as it is, or with gzip or deflate.", shown(encoding.decode("latin-1")),
        )  # fmt: skip
    try:
        return _inflated(body, _window_bits(body, encoding))
    except zlib.error:
        return Defect(
            "invalid-encoding", "body", f"not what {encoding.decode()} makes",
            "Compress the body again, or send it as it is.",
        )  # fmt: skip


def _window_bits(body: bytes, encoding: bytes) -> int:
    if encoding != b"deflate":
        return 31
    # RFC 9110 means zlib's format; some clients send the bare stream.
    is_zlib = len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return 15 if is_zlib else -15


def _inflated(body: bytes, window_bits: int) -> bytes:
    most = min(BODY_BYTES_MAX, max(EXPANSION_FREE_BYTES, len(body) * EXPANSION_RATIO_MAX))
    chunks: list[bytes] = []
    size = members = 0
    left = body
    while left:  # gzip members may follow one another (RFC 1952, 2.2); deflate has no such thing
        members += 1
        if members > (GZIP_MEMBERS_MAX if window_bits == 31 else 1):
            raise zlib.error("too many members")
        stream = zlib.decompressobj(window_bits)
        while not stream.eof:
            chunk = stream.decompress(left, _STEP_BYTES)
            left = stream.unconsumed_tail
            size += len(chunk)
            if size > most:
                raise TooLargeError
            chunks.append(chunk)
            if not chunk and not left and not stream.eof:
                raise zlib.error("cut off")
        left = stream.unused_data
    return b"".join(chunks)


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    """Give the last value of the header `name` (lower case), empty when there is none."""
    found = b""
    for known, value in headers:
        if known == name:
            found = value
    return found
