"""Makes the target of a subscription that names a connector."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp
import msgspec

from services.contracts.postgres_log import Executor
from services.contracts.yaml_source import nearest
from services.stage_service.subscriptions.connectors.book import ConnectorBook
from services.stage_service.subscriptions.connectors.calls import Calls
from services.stage_service.subscriptions.connectors.target import ConnectorTarget
from services.stage_service.subscriptions.subscription import Subscription


class NoConnectorError(ValueError):
    """There is no usable file of the connector that a subscription names; the message says what to do."""


class Connectors:
    """The connectors of a process: their files, and where they remember what they wrote."""

    def __init__(self, book: ConnectorBook, executor: Executor) -> None:
        self.book = book
        self._executor = executor

    def described(self, subscription: Subscription) -> Subscription:
        """Give `subscription` with the event types of its connector, where it names none."""
        self.book.refresh()
        connector = self.book.connectors.get(subscription.connector or "")
        if connector is None or subscription.types:
            return subscription
        return msgspec.structs.replace(subscription, types=connector.types)

    def target(
        self, subscription: Subscription, open_session: Callable[[], aiohttp.ClientSession]
    ) -> ConnectorTarget:
        """Make the target of `subscription`; raises NoConnectorError.

        `open_session` gives the session of its connections, and so decides which addresses they may reach.
        """
        name = subscription.connector or ""
        self.book.refresh()
        connector = self.book.connectors.get(name)
        if connector is None:
            remedy = nearest(name, self.book.connectors) or "See 'baton connectors list'."
            raise NoConnectorError(f"there is no connector {name!r}. {remedy}")
        calls = Calls(open_session, subscription.timeout_s)
        return ConnectorTarget(connector, subscription, self._executor, calls)
