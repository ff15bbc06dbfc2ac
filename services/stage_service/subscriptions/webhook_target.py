"""Hands events over by HTTP: a signed POST to one address, as Standard Webhooks 1.0 asks.

A success is an answer of 2xx, and nothing else: redirects are not followed. What is connected to is checked
at each connection (`addresses`), whatever a name resolves to by then. Time, what is read of an answer, and
the connections are limited; each subscription has connections, and names being resolved, of its own, so a
hanging endpoint holds up nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from services.contracts.events import Message
from services.stage_service.subscriptions.addresses import Allowed, check_address
from services.stage_service.subscriptions.payload import CONTENT_TYPE, body_of
from services.stage_service.subscriptions.schedule import retry_after_s
from services.stage_service.subscriptions.signing import Signer
from services.stage_service.subscriptions.subscription import (
    RESPONSE_CHARACTERS_MAX,
    Outcome,
    Secret,
    Subscription,
)

CONNECT_WITHIN_S = 5.0
RESPONSE_BYTES_MAX = 16_384
KEEP_ALIVE_S = 4.0
"""Shorter than most servers keep an idle connection, so that few close it while we begin to use it."""
RESOLVE_AGAIN_S = 10
REASON_CHARACTERS_MAX = 300
GONE = 410
OURS = frozenset({
    "content-type", "content-length", "host", "transfer-encoding", "connection", "webhook-id",
    "webhook-timestamp", "webhook-signature",
})  # fmt: skip
"""Headers that a subscription's own do not replace."""


class AddressRefusedError(OSError):
    """The address is not one that Baton may connect to."""


def open_session(
    subscription: Subscription, allowed: Allowed, tls: ssl.SSLContext | None = None
) -> aiohttp.ClientSession:
    """Open the connections of `subscription`, which reach no address but those that `allowed` does."""
    connector = aiohttp.TCPConnector(
        limit=subscription.concurrency, ttl_dns_cache=RESOLVE_AGAIN_S, resolver=Resolver(),
        socket_factory=functools.partial(_socket, allowed), ssl=tls or _verifying(),
        keepalive_timeout=KEEP_ALIVE_S,
    )  # fmt: skip
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False,
        trust_env=False, raise_for_status=False, skip_auto_headers=("accept", "accept-encoding"),
        timeout=aiohttp.ClientTimeout(total=subscription.timeout_s, sock_connect=CONNECT_WITHIN_S),
    )  # fmt: skip


def _socket(allowed: Allowed, address: Any) -> socket.socket:
    """Make the socket of a connection that is about to be made: the last moment to refuse."""
    family, kind, protocol, _, where = address
    refused = check_address(str(where[0]), allowed)
    if refused is not None:
        raise AddressRefusedError(
            f"{where[0]} is {refused}: Baton does not connect to it unless its operator allows it"
        )
    return socket.socket(family=family, type=kind, proto=protocol)


class WebhookTarget:
    """`Target` that posts to the URL of a subscription. Raises SigningKeyError for secrets that are none."""

    def __init__(
        self, subscription: Subscription, secrets: Sequence[Secret], allowed: Allowed,
        tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        assert subscription.url is not None  # noqa: S101
        self._subscription = subscription
        self._url = URL(subscription.url, encoded=True)
        self._shown = str(self._url.with_query(None).with_fragment(None).with_user(None))
        self._signer = Signer(secrets)
        self._headers = {
            "user-agent": "Baton", **{
                name: value for name, value in subscription.headers.items() if name.lower() not in OURS
            },
            "content-type": CONTENT_TYPE,
        }  # fmt: skip
        self._allowed = allowed
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def deliver(self, message: Message, attempt: int, now: datetime) -> Outcome:
        """Post `message` once, signed with the time `now`."""
        del attempt
        body = body_of(message, self._subscription.payload)
        headers = self._headers | self._signer.headers(message.id, body, now)
        request = f"POST {self._shown}, {len(body)} bytes"
        if self._session is None:
            self._session = open_session(self._subscription, self._allowed, self._tls)
        began = time.perf_counter()
        outcome = await self._post(self._session, body, headers, now)
        return _with(outcome, request, round((time.perf_counter() - began) * 1000, 1))

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(
        self, session: aiohttp.ClientSession, body: bytes, headers: dict[str, str], now: datetime
    ) -> Outcome:
        try:
            async with session.post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                text = await _beginning(answer)
                return _judged(answer.status, answer.headers.get("retry-after"), text, now)
        except aiohttp.ClientConnectorDNSError:
            return Outcome(False, reason=f"the name {self._url.host} cannot be resolved", down=True)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError) as error:
            return Outcome(False, reason=_said("TLS failed", error), down=True)
        except aiohttp.ClientConnectorError as error:
            refused = isinstance(error.os_error, AddressRefusedError)
            reason = str(error.os_error) if refused else _said("not reached", error.os_error)
            return Outcome(False, reason=reason[:REASON_CHARACTERS_MAX], down=True)
        except aiohttp.ConnectionTimeoutError:
            return Outcome(False, reason=f"no connection within {CONNECT_WITHIN_S:g} s", down=True)
        except TimeoutError:
            within = f"no answer within {self._subscription.timeout_s:g} s"
            return Outcome(False, reason=within, down=True)
        except (aiohttp.InvalidURL, ValueError) as error:
            return Outcome(False, reason=f"the request cannot be made: {type(error).__name__}")
        except (aiohttp.ClientError, OSError) as error:
            reason = f"the connection was lost before an answer: {type(error).__name__}"
            return Outcome(False, reason=reason, down=True)


Lookup = Callable[..., list[tuple[Any, Any, Any, Any, Any]]]


class Resolver(AbstractResolver):
    """Resolves names in a thread of its own, one name at a time a subscription.

    However many names hang, none waits for another's: there is no pool to be used up. Who gives up waiting
    leaves the thread to end by itself, and who asks again waits for that one. `lookup` blocks, as
    ``socket.getaddrinfo`` does, which it is unless given.
    """

    def __init__(self, lookup: Lookup | None = None) -> None:
        self._lookup = lookup
        self._running: tuple[tuple[Any, ...], asyncio.Future[Any]] | None = None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Give the addresses of `host`; raises OSError."""
        asked = (host, port, family)
        while self._running is not None and self._running[0] != asked:
            await asyncio.wait([self._running[1]])
        if self._running is None:
            self._running = (asked, self._begin(host, port, family))
        found = await asyncio.shield(self._running[1])
        return [
            ResolveResult(
                hostname=host, host=str(where[0]), port=port, family=of, proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for of, _, protocol, _, where in found
        ]  # fmt: skip

    def _begin(self, host: str, port: int, family: int) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def end(found: Any, error: BaseException | None) -> None:
            self._running = None
            if error is None:
                future.set_result(found)
            else:
                future.set_exception(error)
                future.exception()  # whoever asked may have left

        def look_up() -> None:
            found, failed = None, None
            try:
                found = (self._lookup or socket.getaddrinfo)(
                    host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
                )
            except Exception as error:
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(end, found, failed)

        threading.Thread(target=look_up, name="resolve", daemon=True).start()
        return future

    async def close(self) -> None:
        """Nothing is held."""


@functools.cache
def _verifying() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _beginning(answer: aiohttp.ClientResponse) -> bytes:
    """Read an answer's body, no more than is allowed; what fails here does not change what was answered."""
    text = b""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
        while len(text) < RESPONSE_BYTES_MAX:
            part = await answer.content.read(RESPONSE_BYTES_MAX - len(text))
            if not part:
                return text
            text += part
    answer.close()  # there may be more, without end: this connection cannot be used again
    return text


def _judged(status: int, retry_after: str | None, text: bytes, now: datetime) -> Outcome:
    response = readable(text[: RESPONSE_CHARACTERS_MAX * 4].decode("utf-8", "replace"))
    if 200 <= status < 300:
        return Outcome(True, status, response=response)
    reason = f"answered {status}"
    if 300 <= status < 400:
        reason += ": redirects are not followed, subscribe with the address itself"
    return Outcome(
        False, status, reason, response, retry_after_s=retry_after_s(retry_after, now),
        gone=status == GONE, down=status == 429 or status >= 500,
    )  # fmt: skip


def readable(text: str) -> str | None:
    """Give the beginning of what somebody sent, as it can be kept and shown; None for nothing."""
    return text.replace("\0", "")[:RESPONSE_CHARACTERS_MAX] or None


def _said(what: str, error: BaseException) -> str:
    text = readable(getattr(error, "strerror", None) or str(error)) or type(error).__name__
    return f"{what}: {text}"[:REASON_CHARACTERS_MAX]


def _with(outcome: Outcome, request: str, duration_ms: float) -> Outcome:
    return Outcome(
        outcome.ok, outcome.status, outcome.reason, outcome.response, outcome.retry_after_s,
        outcome.gone, outcome.final, outcome.down, duration_ms, request,
    )  # fmt: skip
