"""A subscription of a connector, against a fake CRM and a real PostgreSQL: for the tests of connectors."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import msgspec

from services.contracts.events import TRANSITIONED, Message, message_headers
from services.stage_service.subscriptions.connectors.book import load_connector
from services.stage_service.subscriptions.connectors.calls import Calls
from services.stage_service.subscriptions.connectors.target import ConnectorTarget
from services.stage_service.subscriptions.subscription import Outcome, Subscription
from tests.fakes.crm import FakeCrm

ROOT = Path(__file__).parents[2]
PEOPLE = {"elena": "elena@example.com", "jonas": "jonas@example.com", "mia": "mia@example.com"}
_positions = itertools.count(1)


def subscription(connector: str, credentials: dict[str, str], **config: Any) -> Subscription:
    """A subscription of `connector`."""
    return Subscription(
        id=str(uuid.uuid4()), name="crm", connector=connector, url=None, types=(), filter=None,
        payload="full", ordered=True, headers={}, credentials=credentials, config=config,
        contact=None, timeout_s=5.0, concurrency=8, rate_per_s=None, state="active", version=1,
    )  # fmt: skip


def told(
    lead: str, to: str | None = "mql", *, type: str = TRANSITIONED, owner: str | None = "elena",
    email: str | None = "ada@example.com", key: str = "main", position: int | None = None,
    **attributes: Any,
) -> Message:  # fmt: skip
    """A published transition of a lead, in the shape of `StageTransitioned`."""
    person = {"id": owner, "name": owner.title()} if owner else None
    data: dict[str, Any] = {
        "transition_id": str(uuid.uuid4()), "sequence": 1,
        "lead": {
            "id": lead, "email": email, "name": attributes.pop("name", "Ada Ortiz"),
            "company": attributes.pop("company", "Example"), "touches": [],
            "attributes": {"first_name": "Ada", "last_name": "Ortiz"} | attributes,
        },
        "journey": {"id": str(uuid.uuid4()), "playbook": "sales", "key": key},
        "responsible": {"role": "ae", "owner": person}, "explanation": "",
        "occurred_at": "2026-01-01T00:00:00Z", "recorded_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    if to is not None:
        data |= {"from": "lead", "to": to}
    headers = message_headers(data["transition_id"], type, datetime(2026, 1, 1, tzinfo=UTC))
    place = next(_positions) if position is None else position
    return Message("baton.transitions", lead, headers, msgspec.json.encode(data), place)


@dataclass
class House:
    """One subscription's target, and what it writes to."""

    crm: FakeCrm
    pool: asyncpg.Pool[Any]
    subscription: Subscription
    calls: Calls
    late: timedelta = field(default_factory=timedelta)
    """How far the house's clock is ahead."""
    target: ConnectorTarget = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Make the target anew, as another process would."""
        name = self.subscription.connector
        connector = load_connector(ROOT / "connectors" / f"{name}.yaml")
        self.target = ConnectorTarget(connector, self.subscription, self.pool, self.calls, self.now)

    def now(self) -> datetime:
        """The house's time: the CRM's, and how much that is late."""
        return self.crm.clock() + self.late

    async def deliver(self, message: Message) -> Outcome:
        """One attempt."""
        return await self.target.deliver(message, 1, self.now())

    async def deliver_ok(self, message: Message) -> Outcome:
        """One attempt, which must succeed."""
        outcome = await self.deliver(message)
        assert outcome.ok, outcome
        return outcome


@asynccontextmanager
async def connected(
    database_url: str, crm: FakeCrm, connector: str, credentials: dict[str, str], **config: Any
) -> AsyncIterator[House]:
    """Run a target for `crm`; what the fake complains of fails the test."""
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=5)
    try:
        wanted = subscription(connector, credentials, **config)
        await store(pool, wanted)
        await hire(pool)
        house = House(crm, pool, wanted, Calls(aiohttp.ClientSession, 5.0))
        yield house
        await house.target.close()
    finally:
        await pool.close()
    assert crm.complaints == []


async def store(pool: Any, wanted: Subscription) -> None:
    """Store a subscription, as the API does; its credentials stay out of it."""
    await pool.execute(
        """INSERT INTO stage.subscriptions (id, name, connector, types, payload, ordered, config,
             timeout_s, concurrency, state, state_at, created_at, created_by, updated_at)
           VALUES ($1, $2, $3, '{}', 'full', true, $4, 5, 8, 'active', now(), now(), 'test', now())""",
        wanted.id, wanted.name, wanted.connector, msgspec.json.encode(wanted.config).decode(),
    )  # fmt: skip


async def hire(pool: Any) -> None:
    """Put the people into the roster, where they are not yet."""
    for id, email in PEOPLE.items():
        document = msgspec.json.encode({"id": id, "name": id.title(), "email": email}).decode()
        await pool.execute(
            """INSERT INTO roster.people (id, document) VALUES ($1, $2)
               ON CONFLICT DO NOTHING""",
            id, document,
        )  # fmt: skip


def new_lead() -> str:
    """An id of a lead."""
    return str(uuid.uuid4())
