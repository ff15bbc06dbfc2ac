"""What must hold after a quarter, whatever happened in it: from the database, and from what reached people.

Who may be told when, and when a deadline is, comes from `reading`, not from Baton's own calendar.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from services.baton.verify import verify_database
from services.contracts.events import (
    CORRECTED,
    OWNER_CHANGED,
    TRANSITIONED,
    Message,
)
from services.contracts.handoffs import (
    ACCEPTED,
    CLOCK_RANG,
    OFFERED,
    OVERDUE,
    REJECTED,
    WITHDRAWN,
)
from tests.system.quarter import fairness
from tests.system.quarter.evidence import Published, Quarter
from tests.system.quarter.reading import Book
from tests.system.quarter.receivers import Arrival
from tests.system.quarter.walk import LEADER_ACTS_S

TOLD_TYPES = (TRANSITIONED, CORRECTED, OWNER_CHANGED, OFFERED, ACCEPTED, REJECTED, WITHDRAWN, OVERDUE,
              CLOCK_RANG)  # fmt: skip
WITHIN_H = {"lead_agent": 4, "ae": 4, "csm": 8}
"""As playbooks/sales.yaml says."""
RUNGS = {
    "lead_agent": ((0, "stand_in"), (1, "role_lead"), (4, "sales_leadership")),
    "ae": ((0, "stand_in"), (2, "role_lead"), (4, "sales_leadership")),
    "csm": ((0, "stand_in"), (8, "sales_leadership")),
}
HOUR_S = 3600.0
SOON = timedelta(seconds=1)
"""Time stands still while what is due is done, so a second is much; but for a walk in long steps."""


def check_owners(it: Quarter) -> None:
    """No handoff without an owner who was there, or the person responsible for what nobody gets."""
    assert it.handoffs
    for row in it.handoffs:
        if _is_history(row):
            continue
        person = it.book.person(row["person_id"] or "", row["recorded_at"])
        assert person is not None, f"nobody's: {dict(row)}, {it.story(row['lead_id'])}"
        if row["state"] == "offered":
            assert it.book.person(row["person_id"], it.now), f"{row['id']} waits for who has left"


def _is_history(row: Any) -> bool:
    """Tell whether a handoff became known when it was over, by a late event: it never was anybody's."""
    return row["state"] != "offered" and row["answered_at"] <= row["recorded_at"]


def _begin(row: Any) -> datetime:
    """Give from when a deadline counts: the offer, or when it was learned of, if that was later."""
    return max(row["offered_at"], row["recorded_at"])


def check_deadlines(it: Quarter) -> None:
    """Every deadline is the owner's working hours on, counted apart."""
    for row in it.handoffs:
        if _is_history(row):
            continue
        owner = it.book.person(row["person_id"], row["recorded_at"])
        assert owner is not None
        expected = owner.deadline(_begin(row), WITHIN_H[row["role"]] * HOUR_S)
        assert row["due_at"] == expected, (dict(row), expected)


def check_answers(it: Quarter) -> Counter[str]:
    """Every handoff has its answer, or waits and has not come to the end of its ladder in silence."""
    found: Counter[str] = Counter()
    rings: dict[str, list[Published]] = defaultdict(list)
    for rang in it.of_type(CLOCK_RANG):
        rings[rang.body["handoff_id"]].append(rang)
    for row in it.handoffs:
        found[row["state"]] += 1
        found["overdue"] += row["overdue_at"] is not None
        if row["state"] != "offered":
            assert row["answered_at"] is not None, dict(row)
            continue
        clock = it.clocks[row["id"]]
        assert clock["state"] == "running", dict(clock)
        if clock["due_at"] is not None:
            assert clock["due_at"] > it.now, f"due and not fired: {dict(clock)}"
            continue
        leaders = _leaders(it, it.now)
        acts: list[datetime] = []
        for rang in rings[str(row["id"])]:
            if rang.body["step"] != "escalate":
                continue  # a leader who has it is reminded too, as its owner, who may do nothing
            heard = [
                person for wish in rang.body["alerts"] if wish["person"]["id"] in leaders
                and (person := it.book.person(wish["person"]["id"], it.now))
            ]  # fmt: skip
            # Of several who hear at once the first acts, by hours of their own.
            acts += [p.deadline(rang.moment("recorded_at"), LEADER_ACTS_S) for p in heard[:1]]
        assert acts, f"nobody at the end of the ladder heard: {dict(row)}"
        assert min(acts) > it.now - timedelta(hours=1) - it.soon, f"waits in silence: {dict(row)}"
    return found


def check_escalations(it: Quarter) -> Counter[str]:
    """Whatever was overdue was told in time, and every rung after it told somebody in time."""
    told: dict[tuple[str, str], list[Published]] = defaultdict(list)
    for message in it.of_type(OVERDUE, CLOCK_RANG):
        step = message.body.get("step", "overdue")
        told[message.body["handoff_id"], step].append(message)
    found: Counter[str] = Counter()
    for row in it.handoffs:
        answered, known = row["answered_at"] or it.now, row["recorded_at"]
        # An answer in the very moment of the deadline may be recorded before it.
        if row["due_at"] > it.now or answered < max(row["due_at"], known) + it.soon:
            continue
        [overdue] = told[str(row["id"]), "overdue"]
        found["overdue"] += 1
        assert overdue.body["alerts"], overdue
        assert overdue.moment("recorded_at") - max(row["due_at"], known) < it.soon, overdue
        _check_rungs(it, row, told[str(row["id"]), "escalate"], answered, found)
    return found


def _check_rungs(
    it: Quarter, row: Any, rings: list[Published], answered: datetime, found: Counter[str]
) -> None:
    owner = it.book.person(row["person_id"], row["recorded_at"])
    assert owner is not None
    at = {rang.moment("occurred_at"): rang for rang in rings}
    told: set[str] = set()
    for hours, to in RUNGS[row["role"]]:
        due = owner.deadline(_begin(row), (WITHIN_H[row["role"]] + hours) * HOUR_S)
        fired = max(due, row["recorded_at"])
        if fired > it.now or answered < fired + it.soon:
            return
        rang = at.get(due)
        if to == "stand_in":
            away = owner.away(fired)
            stand_in = (away or {}).get("stand_in")
            assert (rang is not None) == (stand_in is not None), (dict(row), rings)
            if rang is None:
                continue
            assert [w["person"]["id"] for w in rang.body["alerts"]] == [stand_in]
            told.add(stand_in)
            found[to] += 1
            continue
        assert rang is not None, f"nobody heard of step {to} of {dict(row)}"
        heard = {w["person"]["id"] for w in rang.body["alerts"]}
        assert heard or _leaders(it, fired) <= told | {row["person_id"]}, rang
        told |= heard
        assert rang.moment("recorded_at") - fired < it.soon, rang
        found[to] += 1


def _leaders(it: Quarter, at: datetime) -> set[str]:
    return {p.document["id"] for p in it.book.of_role("sales_leadership", at)}


def check_clocks_once(it: Quarter) -> int:
    """Each step of a clock was told once; and no handoff was overdue twice."""
    rings = Counter(
        (m.body["clock_id"], m.body["since"], m.body["step"], m.body["occurred_at"])
        for m in it.of_type(CLOCK_RANG)
    )
    rings.update((m.body["handoff_id"],) for m in it.of_type(OVERDUE))
    assert not [r for r, count in rings.items() if count > 1]
    return len(rings)


def check_alerts_once(it: Quarter) -> int:
    """Each message told whom it wished told, once each, and nobody else: none lost, none double."""
    wished: Counter[tuple[str, str]] = Counter()
    for message in it.of_type(*TOLD_TYPES):
        recipients = {
            w["person"]["id"] if w["person"] else f"role:{w['role']}"
            for w in message.body.get("alerts", [])
        }
        wished.update((message.id, recipient) for recipient in recipients)
    made = Counter(
        (str(a["transition_id"]), a["recipient"]) for a in it.alerts if a["kind"] != "escalation"
    )
    assert wished == made, (list(wished - made)[:5], list(made - wished)[:5])
    return len(made)


def check_deliveries(it: Quarter, *, kills: bool = False) -> Counter[str]:
    """Every alert reached its person once by each channel, in their hours; or waits, and says why.

    After `kills` a message may come again where its record says that nobody knows whether it came before.
    """
    parcels: dict[tuple[str, str], set[UUID]] = defaultdict(set)
    alerts = {a["id"]: a for a in it.alerts}
    for d in it.deliveries:
        parcels[str(d["digest_id"] or d["alert_id"]), _kind(d["channel"])].add(d["alert_id"])
    ambiguous = {(d["alert_id"], _kind(d["channel"])) for d in it.deliveries if d["ambiguous"]}
    came: Counter[tuple[UUID, str]] = Counter()
    found: Counter[str] = Counter()
    for arrival in it.arrivals:
        ids = parcels[arrival.id, arrival.channel]
        assert ids, f"{arrival} tells of no alert"
        came.update((id, arrival.channel) for id in ids)
        found["merged" if len(ids) > 1 else "alone"] += 1
        person = it.book.person(arrival.person, arrival.at)
        assert person is not None, f"{arrival} to somebody who has left"
        urgent = all(alerts[id]["urgent"] for id in ids)
        assert urgent or person.may_be_told(arrival.at), f"disturbed: {arrival}"
        assert {alerts[id]["addressee_id"] for id in ids} == {arrival.person}
    for d in it.deliveries:
        key = d["alert_id"], _kind(d["channel"])
        made_at = alerts[d["alert_id"]]["created_at"]
        if d["channel"] == "inbox":
            continue
        found[d["status"]] += 1
        if d["status"] == "delivered":
            found["came again"] += came[key] - 1
            assert came[key] == 1 or (kills and came[key] > 1 and key in ambiguous), (
                dict(d),
                came[key],
            )
            assert d["finished_at"] - made_at < it.soon or d["why"] or d["attempt"] > 1, dict(d)
        elif d["status"] == "pending":
            assert d["due_at"] > it.now, dict(d)
            assert d["why"] or d["attempt"] > 1, dict(d)
        else:
            assert d["reason"] or d["why"], dict(d)
        if d["why"]:
            found[f"why: {_reason(d['why'])}"] += 1
    told = {
        (d["alert_id"], _kind(d["channel"]))
        for d in it.deliveries
        if d["status"] == "delivered" and d["channel"] != "inbox"
    }
    assert told <= came.keys(), "recorded as delivered, and never came"
    # Killed after it was sent; by the time it was to be tried again, it had been answered already.
    unrecorded = came.keys() - told
    assert not unrecorded or (kills and unrecorded <= ambiguous), unrecorded
    found["came and is not recorded"] = len(unrecorded)
    return found


def check_limits(it: Quarter) -> int:
    """Nobody got more messages in an hour by a channel than they wish; gives the most that anybody got."""
    came: dict[tuple[str, str], list[datetime]] = defaultdict(list)
    most = 0
    for arrival in it.arrivals:
        person = it.book.person(arrival.person, arrival.at)
        assert person is not None
        mine = came[arrival.person, arrival.channel]
        mine[:] = [at for at in mine if at > arrival.at - timedelta(hours=1)]
        mine.append(arrival.at)
        most = max(most, len(mine))
        assert len(mine) <= person.alerts.get("per_hour_max", 30), f"{arrival} is one too many"
    return most


def _kind(channel: str) -> str:
    """Give the kind of a channel: ``webhook`` of ``webhook+http:...``."""
    return channel.partition(":")[0].partition("+")[0]


def _reason(why: str) -> str:
    """Give why without its times and numbers."""
    for word in ("quiet hours", "outside working hours", "away", "digest", "an hour are reached",
                 "burst", "company"):  # fmt: skip
        if word in why:
            return word
    return why


async def everything(
    database_url: str, now: datetime, book: Book, arrivals: list[Arrival], published: list[Message],
    *, kills: bool = False, soon: timedelta = SOON,
) -> dict[str, Any]:  # fmt: skip
    """Check all of it; gives what was counted. `soon` is how long the walk's steps are at least."""
    it = Quarter(now, book, arrivals, published, soon)
    connection = await asyncpg.connect(database_url)
    try:
        await it.load(connection)
    finally:
        await connection.close()
    check_owners(it)
    check_deadlines(it)
    counted: dict[str, Any] = {
        "lead agents": dict(fairness.check_fair(it, "lead_agent", it.transitions, weighted=True)),
        "CSMs": dict(fairness.check_fair(it, "csm", it.transitions, weighted=False)),
        "handoffs": dict(check_answers(it)),
        "escalations": dict(check_escalations(it)),
        "clock steps": check_clocks_once(it),
        "alerts": check_alerts_once(it),
        "deliveries": dict(check_deliveries(it, kills=kills)),
        "messages an hour": check_limits(it) if not kills else "not counted: repeats may come",
    }
    report = await verify_database(database_url)
    assert report.findings == []
    assert report.alerts_waiting == 0
    return counted
