"""No subscription reaches an inner address, however it is written: the real sender, DNS answers, a canary.

The canary listens on every address of this machine. Names are answered by a resolver of the test in place of
the DNS, which also changes its mind between one question and the next, as a rebinding server does.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from services.contracts.events import Message, message_headers
from services.stage_service.subscriptions.addresses import Allowed, allowed_from
from services.stage_service.subscriptions.subscription import Outcome, Secret, Subscription
from services.stage_service.subscriptions.webhook_target import WebhookTarget
from tests.integration.receiver import receiving
from tests.unit.test_addresses import ANSWERS, Canary, spellings

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SECRET = Secret("v1", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", None)
MESSAGE = Message("baton.transitions", "l-1", message_headers("e-1", "baton.test.v1", NOW), b"{}")


@pytest_asyncio.fixture
async def canary() -> AsyncIterator[Canary]:
    it = Canary()
    server = await it.start()
    yield it
    server.close()
    await server.wait_closed()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """What the names of the test resolve to: one list of addresses a question, the last one for ever."""
    told: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **named: Any) -> list[Any]:
        if host not in told:
            return real(host, port, *args, **named)
        now = told[host].pop(0) if len(told[host]) > 1 else told[host][0]
        return [
            (
                socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "",
                (ip, port, 0, 0) if ":" in ip else (ip, port),
            )
            for ip in now
        ]  # fmt: skip

    monkeypatch.setattr(socket, "getaddrinfo", resolve)  # stands for the DNS
    return told


async def deliver(url: str, allowed: Allowed | None = None) -> Outcome:
    """One attempt at `url`, past the check of the URL itself, as if that had let it through."""
    subscription = Subscription(
        "s", "s", None, url, (), None, "full", True, {}, {}, {}, None, 3.0, 4, None, "active", 1
    )
    target = WebhookTarget(subscription, [SECRET], allowed or Allowed())
    try:
        return await target.deliver(MESSAGE, 1, NOW)
    finally:
        await target.close()


async def test_no_spelling_of_an_inner_address_is_connected_to(canary: Canary) -> None:
    """Even where the URL was taken, by an older Baton or by hand in the database."""
    hosts = [
        *spellings("127.0.0.1"), *spellings("127.1.2.3"), *spellings("0.0.0.0"), "localhost", "localhost.",
        "a.localhost", "[::1]", "[::]", "[::ffff:7f00:1]", "0", "127.1", socket.gethostname(),
    ]  # fmt: skip
    urls = [f"http://{host}:{canary.port}/" for host in hosts if host.isascii() and "%" not in host]
    everything = allowed_from("all")
    reached = await asyncio.gather(*(deliver(url, everything) for url in urls))
    assert sum(outcome.ok for outcome in reached) >= 20  # they are dangerous
    canary.reached = 0
    outcomes = await asyncio.gather(*(deliver(url) for url in urls))
    assert not any(outcome.ok for outcome in outcomes)
    assert canary.reached == 0


async def test_no_answer_of_the_dns_leads_inside(
    canary: Canary, answers: dict[str, list[list[str]]]
) -> None:
    for n, ip in enumerate(ip for ip in ANSWERS if _is_address(ip)):
        answers[f"h{n}.example.com"] = [[ip]]
    urls = [f"http://{host}:{canary.port}/" for host in answers]
    assert len(urls) >= 60
    outcomes = await asyncio.gather(*(deliver(url) for url in urls))
    for url, outcome in zip(urls, outcomes, strict=True):
        assert not outcome.ok, url
        assert "does not connect to it" in (outcome.reason or ""), (url, outcome.reason)
    assert canary.reached == 0


def _is_address(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except OSError:
            continue
        return True
    return False


async def test_a_name_that_changes_its_mind_is_looked_at_each_time(
    canary: Canary, answers: dict[str, list[list[str]]]
) -> None:
    """Good when it was subscribed, bad at the next question: what is connected to was looked at."""
    answers["turn.example.com"] = [
        ["192.0.2.1"],
        ["127.0.0.1"],
        ["::1"],
        ["93.184.216.34", "127.0.0.1"],
    ]
    for _ in range(4):
        outcome = await deliver(f"http://turn.example.com:{canary.port}/")
        assert not outcome.ok
    assert canary.reached == 0
    answers["mixed.example.com"] = [["127.0.0.1", "10.0.0.1"]]
    outcome = await deliver(f"http://mixed.example.com:{canary.port}/", allowed_from("10.0.0.0/8"))
    assert not outcome.ok
    assert canary.reached == 0


async def test_no_redirect_leads_inside(canary: Canary) -> None:
    """Not even from an address that is allowed."""
    async with receiving() as receiver:
        for status in (301, 302, 303, 307, 308):
            receiver.react = lambda _, status=status: web.Response(  # type: ignore[misc]
                status=status, headers={"location": f"http://127.0.0.1:{canary.port}/"}
            )
            outcome = await deliver(receiver.url, allowed_from("127.0.0.0/8"))
            assert (outcome.ok, outcome.status) == (False, status)
        assert len(receiver.requests) == 5
    assert canary.reached == 0
