"""A believable day at a made-up company: leads come in, answer, book meetings, sign or go away.

Sent over HTTP as tools send: CloudEvents, the generic webhook, and Segment's API. The first start tells the
last ten days at once, with people whom two tools know by different names, and one delivery that no mapping
wants; after that a trickle keeps the board alive.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, Literal

import httpx
import structlog

from services.contracts.cloudevents import BATCHED

DAYS = 10
LEADS = 90
BATCH = 200
TRICKLE_S = (1.0, 4.0)
TOOLS_EVERY = 6
"""Of so many leads one is told of by several tools; every second of these has two names among them."""

_log = structlog.get_logger("baton.demo")

_FIRST = ("Ada", "Ben", "Carla", "Deniz", "Emil", "Farah", "Greta", "Hugo", "Ines", "Jamal", "Karin",
          "Liam", "Mina", "Noor", "Oskar", "Priya", "Quentin", "Rosa", "Sven", "Tara", "Umar", "Vera",
          "Wanda", "Xavier", "Yara", "Zoe")  # fmt: skip
_LAST = ("Albers", "Bianchi", "Castro", "Dahl", "Eriksen", "Ferreira", "Gupta", "Haas", "Ivanov",
         "Jansen", "Kowalski", "Lopez", "Meyer", "Novak", "Okoye", "Park", "Quist", "Rossi", "Sato",
         "Thomsen", "Ueda", "Vogel", "Weiss", "Young", "Zhang")  # fmt: skip
_NAMES = ("Northwind", "Bluefin", "Cobalt", "Drift", "Evergreen", "Fathom", "Granite", "Harbour",
          "Ironwood", "Juniper", "Kestrel", "Lumen", "Meridian", "Nimbus", "Orchard", "Pinnacle",
          "Quarry", "Ripple", "Summit", "Tidewater", "Umbra", "Vantage", "Willow", "Zephyr")  # fmt: skip
_KINDS = ("Logistics", "Foods", "Robotics", "Energy", "Health", "Software", "Textiles", "Media")
_DOMAINS = {f"{name}-{kind}.example".lower() for name in _NAMES for kind in _KINDS}
_ORIGINS = ("organic_search", "paid_search", "webinar", "referral", "social", "email")
_TITLES = ("Head of Operations", "VP Sales", "IT Manager", "Buyer", "Chief Financial Officer",
           "Team Lead", "Director of Logistics", "Engineer")  # fmt: skip
_TOUCHES = ("page.viewed", "page.viewed", "email.clicked", "content.downloaded", "webinar.attended",
            "form.submitted")  # fmt: skip
_LOST = ("no budget this year", "chose another vendor", "project was stopped", "no answer any more")
_REJECTED = ("No budget", "Does not fit what we sell", "Nobody who decides was there")
_HANDED_ON = {"lead.marketing_qualified", "demo.requested", "meeting.booked", "deal.won"}
"""After these somebody else has to accept the lead."""
ACCEPTED, ANSWERED = 0.85, 0.93
_WAY = ("lead.marketing_qualified", "meeting.booked", "proposal.sent", "contract.sent", "deal.won")
_NEXT = {
    "lead": "demo.requested",
    "mql": "meeting.booked",
    "sql": "proposal.sent",
    "proposal": "contract.sent",
    "closing": "deal.won",
    "nurture": "webinar.attended",
}

Event = dict[str, Any]
Tool = Literal["events", "generic", "segment"]
Told = tuple[Tool, Event]
"""Who tells it, in its own form."""
_WEBHOOK: dict[str, Tool] = {
    "webinar.attended": "generic", "form.submitted": "generic",
    "page.viewed": "segment", "content.downloaded": "segment",
}  # fmt: skip
# A badge scanner whose fields nobody has mapped yet.
ODD_DELIVERY = {
    "scanner": "hall-4", "badge": {"no": "B-20817", "mail": "rosa.lindt@orchard-foods.example"},
    "stand": "4C-12", "note": "wants a call about the logistics package",
}  # fmt: skip


def _event(type: str, time: datetime, email: str, **data: Any) -> Event:
    return {
        "specversion": "1.0", "id": uuid.uuid4().hex, "source": "/demo", "type": type,
        "time": time.isoformat(), "data": {"email": email, **data},
    }  # fmt: skip


def _person(chance: random.Random) -> tuple[str, dict[str, Any]]:
    first, last = chance.choice(_FIRST), chance.choice(_LAST)
    name, kind = chance.choice(_NAMES), chance.choice(_KINDS)
    email = f"{first}.{last}@{name}-{kind}.example".lower()
    return email, {
        "name": f"{first} {last}", "company": f"{name} {kind}", "title": chance.choice(_TITLES),
        "employees": chance.choice((8, 25, 60, 140, 250, 900, 4000)),
        "industry": kind.lower(), "origin": chance.choice(_ORIGINS),
        "country": chance.choice(("DE", "UK", "US", "NL", "SE", "JP")),
    }  # fmt: skip


def _is_ours(email: str | None) -> bool:
    """Tell whether a lead is one of the demo's: whoever tries Baton out keeps their own."""
    return (email or "").rpartition("@")[2] in _DOMAINS


def lead_story(chance: random.Random, start: datetime, until: datetime) -> list[Event]:
    """Tell one made-up lead from `start`, as far as it came by `until`, in the order of time."""
    email, about = _person(chance)
    at = start
    events = [_event("lead.created", at, email, **about)]

    def later(hours: float) -> datetime:
        nonlocal at
        at += timedelta(hours=chance.uniform(0.2, 1.8) * hours)
        return at

    events += [_event(chance.choice(_TOUCHES), later(4), email) for _ in range(chance.randrange(5))]
    if chance.random() < 0.75:
        for step, type_ in enumerate(_WAY):
            if step == 0 and chance.random() < 0.5:
                events.append(_event("demo.requested", later(8), email))
            elif chance.random() < 0.86 or step == 0:
                amount = {"amount": chance.randrange(4, 90) * 1000} if step > 1 else {}
                events.append(_event(type_, later(20), email, **amount))
            if events[-1]["type"] in _HANDED_ON:
                events += _answer(chance, events[-1]["type"], later(1), email)
            if chance.random() < 0.13:
                ends = ("deal.lost", chance.choice(_LOST)) if step > 1 else (
                    chance.choice(("lead.recycled", "lead.disqualified")), "not the right moment"
                )  # fmt: skip
                events.append(_event(ends[0], later(20), email, reason=ends[1]))
                break
            if chance.random() < 0.22:
                break
    return [e for e in events if datetime.fromisoformat(e["time"]) <= until]


def _answer(chance: random.Random, handed_by: str, at: datetime, email: str) -> list[Event]:
    """Tell how a handoff was answered, if it was: some are missed, and climb."""
    luck = chance.random()
    if luck < ACCEPTED:
        return [_event("handoff.accepted", at, email)]
    if luck < ANSWERED and handed_by == "meeting.booked":
        return [_event("handoff.rejected", at, email, reason=chance.choice(_REJECTED))]
    return []


def by_its_tool(event: Event) -> Told:
    """Put an event into the form of the tool that would tell it."""
    tool, data = _WEBHOOK.get(event["type"], "events"), event["data"]
    if tool == "generic":
        return tool, {"type": event["type"], "event_id": event["id"], "time": event["time"], **data}
    if tool == "segment":
        call = {"type": "page", "name": "Pricing"} if event["type"] == "page.viewed" else {
            "type": "track", "event": "Content Downloaded"
        }  # fmt: skip
        return tool, {
            **call, "messageId": event["id"], "timestamp": event["time"],
            "anonymousId": uuid.uuid5(uuid.NAMESPACE_DNS, data["email"]).hex,
            "context": {"traits": {"email": data["email"]}},
        }  # fmt: skip
    return tool, event


def product_user(chance: random.Random, email: str, start: datetime, end: datetime) -> list[Told]:
    """Tell what the product knows of somebody: a user id, and only at last the address.

    Until then nobody can know that the user and the lead with this address are one person.
    """
    user = f"user_{chance.randrange(16**6):06x}"
    calls: tuple[dict[str, Any], ...] = (
        {"type": "page", "name": "Product tour"},
        {"type": "track", "event": "Signed Up"},
        {"type": "track", "event": "Trial Started"},
        {"type": "identify", "traits": {"email": email}},
    )
    step = (end - start) / (len(calls) + 1)
    return [
        ("segment", {**call, "userId": user, "messageId": uuid.uuid4().hex,
                     "timestamp": (start + step * (place + 1)).isoformat()})
        for place, call in enumerate(calls)
    ]  # fmt: skip


def _time(told: Told) -> datetime:
    return datetime.fromisoformat(told[1].get("time") or told[1]["timestamp"])


def first_days(chance: random.Random, now: datetime) -> Iterator[Told]:
    """Tell the days before `now`, lead after lead."""
    for number in range(LEADS):
        story = lead_story(chance, now - timedelta(days=chance.uniform(0.05, DAYS)), now)
        if number % TOOLS_EVERY:
            for event in story:
                yield "events", event
            continue
        told = [by_its_tool(event) for event in story]
        if number % (2 * TOOLS_EVERY) == 0 and story:
            start = datetime.fromisoformat(story[0]["time"])
            told += product_user(chance, story[0]["data"]["email"], start, now)
        yield from sorted(told, key=_time)


async def run(url: str, key: str) -> None:
    """Send the demo's traffic to the stage service at `url` until cancelled."""
    chance = random.Random()
    async with httpx.AsyncClient(
        base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=10
    ) as client:
        if not (await client.get("/v1/leads", params={"limit": 1})).json()["items"]:
            await _send(client, first_days(random.Random(7), datetime.now(UTC)))
            await _send(client, [("generic", ODD_DELIVERY)])
        while True:
            await asyncio.sleep(chance.uniform(*TRICKLE_S))
            try:
                await _send(client, await _next(client, chance))
            except (httpx.HTTPError, KeyError, ValueError) as error:
                _log.warning("demo.waits", reason=type(error).__name__)


async def _send(client: httpx.AsyncClient, told: Iterable[Told]) -> None:
    """Send in order, what one tool tells in a row as one request."""
    for tool, run_of in groupby(told, key=lambda each: each[0]):
        messages = [message for _, message in run_of]
        for start in range(0, len(messages), BATCH):
            some = messages[start : start + BATCH]
            if tool == "events":
                headers = {"content-type": BATCHED}
                answer = await client.post("/v1/events", json=some, headers=headers)
            elif tool == "generic":
                answer = await client.post("/webhooks/generic", json=some if some[1:] else some[0])
            else:
                answer = await client.post("/v1/batch", json={"batch": some})
            answer.raise_for_status()


async def _next(client: httpx.AsyncClient, chance: random.Random) -> list[Told]:
    """Let somebody answer a handoff or take a next step on the board, or a new lead come."""
    now = datetime.now(UTC)
    if chance.random() < 0.3:
        answer = await client.get("/v1/handoffs", params={"state": "offered", "limit": 20})
        waiting = [h for h in answer.json()["items"] if _is_ours(h["lead"]["email"])]
        if waiting:
            handoff = chance.choice(waiting)
            handed_by = "meeting.booked" if handoff["role"] == "ae" else ""
            told = _answer(chance, handed_by, now, handoff["lead"]["email"])
            return [("events", event) for event in told]
    if chance.random() < 0.3:
        email, about = _person(chance)
        return [("events", _event("lead.created", now, email, **about))]
    stage = chance.choice(list(_NEXT))
    answer = await client.get("/v1/leads", params={"stage": stage, "limit": 50})
    leads = [lead for lead in answer.json()["items"] if _is_ours(lead["email"])]
    if not leads:
        return []
    email = chance.choice(leads)["email"]
    if chance.random() < 0.05:
        return product_user(chance, email, now - timedelta(minutes=1), now)
    if chance.random() < 0.35:
        return [by_its_tool(_event(chance.choice(_TOUCHES), now, email))]
    if stage in ("sql", "proposal", "closing") and chance.random() < 0.25:
        return [("events", _event("deal.lost", now, email, reason=chance.choice(_LOST)))]
    return [by_its_tool(_event(_NEXT[stage], now, email))]
