"""What is looked at after a quarter: rows, what was published, what arrived, and who was who when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.contracts.events import ASSIGNED_BY_HAND, Message
from services.contracts.handoffs import OFFERED, REJECTED
from tests.system.quarter.reading import Book
from tests.system.quarter.receivers import Arrival


@dataclass(frozen=True)
class Published:
    """A published message: its type, its id, and its body."""

    type: str
    id: str
    body: dict[str, Any]

    def moment(self, name: str) -> datetime:
        """Give the moment that the member `name` tells."""
        return datetime.fromisoformat(self.body[name])


class Quarter:
    """What is looked at: the database's rows, what was published, what arrived, and who was who when."""

    def __init__(
        self,
        now: datetime,
        book: Book,
        arrivals: list[Arrival],
        published: list[Message],
        soon: timedelta,
    ) -> None:
        self.now = now
        self.soon = soon
        self.book = book
        self.arrivals = arrivals
        self.published = [Published(m.type, m.id, msgspec.json.decode(m.value)) for m in published]
        self.handoffs: list[Any] = []
        self.clocks: dict[UUID, Any] = {}
        self.alerts: list[Any] = []
        self.deliveries: list[Any] = []
        self.transitions: list[Any] = []
        self.without: dict[str, list[tuple[datetime, frozenset[str]]]] = defaultdict(list)
        """By lead, when: who could not be chosen as it was given to somebody else, since they had it."""

    async def load(self, connection: asyncpg.Connection[Any]) -> None:
        """Read the rows."""
        self.handoffs = await connection.fetch("SELECT * FROM stage.handoffs ORDER BY offered_at")
        self.clocks = {
            r["handoff_id"]: r
            for r in await connection.fetch(
                "SELECT * FROM stage.clocks WHERE handoff_id IS NOT NULL"
            )
        }
        self.alerts = await connection.fetch("SELECT * FROM notifier.alerts")
        self.deliveries = await connection.fetch("SELECT * FROM notifier.deliveries")
        self.transitions = await connection.fetch(
            "SELECT recorded_at, why FROM stage.transitions WHERE kind = 'transition'"
        )
        for row in await connection.fetch(
            "SELECT lead_id::text, recorded_at, data FROM stage.events WHERE type = $1",
            ASSIGNED_BY_HAND,
        ):
            without = msgspec.json.decode(row["data"])["without"]
            self.without[row["lead_id"]].append((row["recorded_at"], frozenset(without)))
        for lead, moment, without in refusals(self.of_type(OFFERED, REJECTED)):
            self.without[lead].append((moment, without))

    def story(self, lead: UUID) -> str:
        """Give what was published about a lead, for whoever has to find out."""
        told = [m for m in self.published if m.body.get("lead", {}).get("id") == str(lead)]
        return "; ".join(
            f"{m.type} {m.body.get('to') or m.body.get('role')} {m.body.get('occurred_at')}"
            f" recorded {m.body.get('recorded_at')}"
            for m in told
        )

    def of_type(self, *types: str) -> list[Published]:
        """Give the messages of `types`, in order."""
        return [m for m in self.published if m.type in types]


def refusals(messages: Iterable[Published]) -> Iterator[tuple[str, datetime, frozenset[str]]]:
    """Give, at each rejection, of which lead and when, and who had said no since the visit began.

    `messages` tell of handoffs offered and rejected, in order. A visit begins with an offer of the first
    round: its first rejection may be of a later one, after somebody gave it away by hand.
    """
    said_no: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for message in messages:
        body = message.body
        visit = body["lead"]["id"], body["stage"], body["role"]
        if message.type == OFFERED:
            if body["round"] == 1:
                said_no[visit] = set()
            continue
        said_no[visit] |= {body["answered_by"], body["owner"]["id"]}
        yield visit[0], message.moment("recorded_at"), frozenset(said_no[visit])
