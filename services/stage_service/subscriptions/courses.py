"""Makes of a stored subscription what delivers for it: settings opened, filter compiled, target made."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from datetime import datetime

import asyncpg
import structlog

from services.contracts.database import DATABASE_AWAY
from services.contracts.postgres_log import Executor
from services.stage_service.encryption import Cipher, EncryptionError
from services.stage_service.playbook import Playbook
from services.stage_service.subscriptions.addresses import Allowed
from services.stage_service.subscriptions.connectors.making import Connectors, NoConnectorError
from services.stage_service.subscriptions.filters import (
    FilterError,
    Words,
    matcher_for,
    variables_of,
)
from services.stage_service.subscriptions.reads import subscription as read_subscription
from services.stage_service.subscriptions.secrets import signing_secrets
from services.stage_service.subscriptions.sender import Course
from services.stage_service.subscriptions.signing import SigningKeyError
from services.stage_service.subscriptions.targets import TargetError, target_for

_log = structlog.get_logger("baton.subscriptions")


class CourseError(Exception):
    """A subscription cannot be delivered for until it, or the settings, are mended; it keeps its place.

    `words`: what filters could say when its filter did not suit them; None when it is not for that.
    """

    def __init__(self, reason: str, words: Words | None = None) -> None:
        super().__init__(reason)
        self.words = words


class Courses:
    """Opens subscriptions. `playbooks` gives the active ones, which say what filters may speak of."""

    def __init__(
        self, cipher: Cipher, playbooks: Callable[[], Mapping[str, Playbook]], allowed: Allowed,
        tls: ssl.SSLContext | None = None, connectors: Connectors | None = None,
    ) -> None:  # fmt: skip
        self._cipher = cipher
        self._playbooks = playbooks
        self._allowed = allowed
        self._tls = tls
        self._connectors = connectors
        self._read: Mapping[str, Playbook] | None = None
        self._words: Words = ()

    @property
    def words(self) -> Words:
        """What filters may speak of now, with its types: it changes when playbooks declare otherwise."""
        playbooks = self._playbooks()
        if playbooks is not self._read:
            self._read, self._words = playbooks, tuple(sorted(variables_of(playbooks).items()))
        return self._words

    async def open(self, connection: Executor, id: str, now: datetime) -> Course | None:
        """Open the subscription `id` as it is now; None when it is not there. Raises CourseError."""
        try:
            found = await read_subscription(connection, self._cipher, id)
            if found is None:
                return None
            if self._connectors is not None:
                found = self._connectors.described(found)
            secrets = (await signing_secrets(connection, self._cipher, [id], now))[id]
            words = self.words if found.filter is not None else None
            matches = matcher_for(found, self._playbooks())
            target = target_for(found, secrets, self._allowed, self._tls, self._connectors)
            return Course(found, target, matches, words)
        except (
            EncryptionError,
            FilterError,
            NoConnectorError,
            SigningKeyError,
            TargetError,
        ) as error:
            words = self.words if isinstance(error, FilterError) else None
            raise CourseError(str(error), words) from None
        except (*DATABASE_AWAY, asyncpg.PostgresError):
            raise
        except (
            Exception
        ) as error:  # a mistake of ours holds up this one, and not all of the process
            _log.exception("subscription.unreadable", subscription=id)
            raise CourseError(f"a mistake in Baton: {type(error).__name__}") from None
