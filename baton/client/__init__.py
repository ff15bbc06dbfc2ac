"""A small client of Baton: send lead events, follow the feeds, look a lead up, verify webhooks.

::

    from baton.client import Client, Event

    with Client("http://127.0.0.1:8080", key) as baton:
        result = baton.send(Event("demo.requested", "/website", {"email": "ada@example.com"}))
        for item in baton.transitions(after=0, follow=True):
            print(item.position, item.lead_id, item.to)

`AsyncClient` is the same for asyncio. `verify_webhook` needs no client. Everything that goes wrong is a
`BatonClientError`. Needs httpx and standardwebhooks; for ``v1a`` signatures cryptography too.
"""

from __future__ import annotations

from baton.client.asynchronous import AsyncClient, AsyncFeed
from baton.client.errors import (
    AnswerError,
    BatonClientError,
    CursorAheadError,
    RefusedError,
    UnreachableError,
    WebhookError,
)
from baton.client.records import Event, FeedItem, Lead, Result, Transition, WebhookEvent
from baton.client.synchronous import Client, Feed
from baton.client.webhooks import verify_webhook

__all__ = [
    "AnswerError",
    "AsyncClient",
    "AsyncFeed",
    "BatonClientError",
    "Client",
    "CursorAheadError",
    "Event",
    "Feed",
    "FeedItem",
    "Lead",
    "RefusedError",
    "Result",
    "Transition",
    "UnreachableError",
    "WebhookError",
    "WebhookEvent",
    "verify_webhook",
]
