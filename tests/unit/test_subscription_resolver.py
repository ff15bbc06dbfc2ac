"""Names that never resolve hold up no others, and take one thread each."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any

import pytest

from services.stage_service.subscriptions.webhook_target import Resolver

HANGING = 150


class Hanging:
    """A lookup that blocks until told."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str, *_: Any, **__: Any) -> list[Any]:
        """Block, then fail."""
        self.asked.append(host)
        self.go_on.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")


async def test_any_number_of_hanging_names_holds_up_no_other() -> None:
    hanging = Hanging()
    try:
        waiting = [
            asyncio.create_task(Resolver(hanging).resolve(f"{n}.example.com"))
            for n in range(HANGING)
        ]
        async with asyncio.timeout(10):
            found = await Resolver().resolve("localhost", 80)
            assert found[0]["host"] == "127.0.0.1"
            while len(hanging.asked) < HANGING:
                await asyncio.sleep(0)
    finally:
        hanging.go_on.set()
    for each in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(each, socket.gaierror)


async def test_who_asks_again_waits_for_the_same_lookup() -> None:
    """A name that hangs is asked for by each attempt, and each attempt is cut off."""
    hanging = Hanging()
    resolver = Resolver(hanging)
    try:
        for _ in range(5):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await resolver.resolve("a.example.com", 443)
        assert hanging.asked == ["a.example.com"]
        last = asyncio.create_task(resolver.resolve("a.example.com", 443))
        await asyncio.sleep(0)
    finally:
        hanging.go_on.set()
    with pytest.raises(socket.gaierror):
        await last


async def test_another_name_waits_its_turn() -> None:
    hanging = Hanging()
    resolver = Resolver(hanging)
    first = asyncio.create_task(resolver.resolve("a.example.com", 443))
    second = asyncio.create_task(resolver.resolve("b.example.com", 443))
    try:
        async with asyncio.timeout(5):
            while hanging.asked != ["a.example.com"]:
                await asyncio.sleep(0)
    finally:
        hanging.go_on.set()
    await asyncio.gather(first, second, return_exceptions=True)
    assert hanging.asked == ["a.example.com", "b.example.com"]
