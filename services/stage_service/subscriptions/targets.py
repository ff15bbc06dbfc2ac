"""Which `Target` a subscription has: a signed webhook, or the connector that it names."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from services.stage_service.subscriptions.addresses import Allowed
from services.stage_service.subscriptions.connectors.making import Connectors
from services.stage_service.subscriptions.subscription import Secret, Subscription, Target
from services.stage_service.subscriptions.webhook_target import WebhookTarget, open_session


class TargetError(ValueError):
    """A subscription cannot be delivered to until it is changed; the message says why, without secrets."""


def target_for(
    subscription: Subscription, secrets: Sequence[Secret], allowed: Allowed,
    tls: ssl.SSLContext | None = None, connectors: Connectors | None = None,
) -> Target:  # fmt: skip
    """Make the target of `subscription`. Raises TargetError, or SigningKeyError for a bad secret.

    `tls` verifies servers; None: by the system's authorities.
    """
    if subscription.connector is not None:
        if connectors is None:
            raise TargetError(f"there is no connector {subscription.connector!r}")
        return connectors.target(subscription, lambda: open_session(subscription, allowed, tls))
    return WebhookTarget(subscription, secrets, allowed, tls)
