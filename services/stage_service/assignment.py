"""The owners of one batch: what routing needs, read and locked once, and a decision for each role asked.

`expect` what may be decided, `lock` it in one statement, then `assign`. The lock is also the moment that
the roster is looked at: a change that another process committed is taken over before anybody is chosen.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from services.contracts.events import MAIN, LeadEvent
from services.contracts.roster import Roster
from services.contracts.team import Person, Team
from services.stage_service import store
from services.stage_service.accounts import account_of
from services.stage_service.funnel import Lead, Move, score_of
from services.stage_service.playbook import Playbook
from services.stage_service.rotation import Turns
from services.stage_service.routing import Case, Decision, asks_account, asks_load, route
from services.stage_service.store import Connection, Record, Rotations


class _Standing:
    """A journey that stays where it is, as routing looks at it."""

    def __init__(self, name: str, playbook: Playbook, lead: Lead, at: datetime) -> None:
        self.journey = name
        self.key = lead.journeys[name].key
        self.to_stage = lead.journeys[name].stage
        self.score = score_of(lead, playbook, at)


class Assigner:
    """Decides the owners of one batch; use once."""

    def __init__(self, roster: Roster, at: datetime) -> None:
        self._roster = roster
        self._at = at
        self._roles: set[str] = set()
        self._people: set[str] = set()
        self._accounts: set[str] = set()
        self._locked = Rotations({}, {}, {}, 0)
        self._owned: dict[tuple[str, str], str] = {}

    @property
    def turns(self) -> dict[str, Turns]:
        """The rotations that were locked, by role, as they are to be written."""
        return self._locked.turns

    def expect(self, role: str, record: Record, playbook: Playbook) -> None:
        """Note that an owner for `role` of a journey of `record` may have to be chosen."""
        self._roles.add(role)
        routing = playbook.routing.get(role)
        team = self._roster.team
        if asks_load(routing, team.by_role.get(role, ())):
            # Everybody: a stand-in may be of another role.
            self._people.update(p.id for p in team.people)
        if asks_account(routing) and record.lead is not None:
            account = account_of(record.lead.email, record.lead.attributes)
            if account is not None:
                self._accounts.add(account)

    @property
    def team(self) -> Team:
        """The roster that owners are chosen from, as it is under the lock."""
        return self._roster.team

    def person(self, id: str) -> Person | None:
        """Give the person `id`, if they are in the roster."""
        return self._roster.team.by_id.get(id)

    async def lock(self, connection: Connection) -> None:
        """Lock the rotations of the roles expected, if any; take over a roster that changed."""
        if not self._roles:
            return
        self._locked = await store.lock_rotations(
            connection, sorted(self._roles), sorted(self._people), sorted(self._accounts)
        )
        if self._locked.revision > self._roster.revision:
            await self._roster.load(connection)

    def by_hand(
        self, record: Record, playbook: Playbook, name: str, event: LeadEvent
    ) -> Decision | None:
        """Decide as an `event` of assignment asks: the person it names, if they are here, else by routing."""
        data = event.data
        role = str(data["role"])
        person = self._roster.team.by_id.get(str(data.get("person")))
        if person is None:
            assert record.lead is not None  # noqa: S101  it has just been folded
            at = _Standing(name, playbook, record.lead, event.time)
            return self._decide(role, record, playbook, at, frozenset(data.get("without", ())))
        loads = self._locked.loads
        loads[person.id] = loads.get(person.id, 0) + 1
        why = f"{person.name}: assigned by {data.get('actor')}: {data.get('reason')}"
        return Decision(role, person.id, person.name, why, "by-hand")

    def again(
        self,
        role: str,
        record: Record,
        playbook: Playbook,
        name: str,
        event: LeadEvent,
        without: frozenset[str],
    ) -> Decision | None:
        """Decide who gets a journey that somebody rejected: by routing, but nobody of `without`."""
        assert record.lead is not None  # noqa: S101  it has just been folded
        at = _Standing(name, playbook, record.lead, event.time)
        return self._decide(role, record, playbook, at, without)

    def assign(self, role: str, record: Record, playbook: Playbook, move: Move) -> Decision | None:
        """Decide who gets the journey of `move` for `role`; None when it was not expected."""
        return self._decide(role, record, playbook, move)

    def _decide(
        self,
        role: str,
        record: Record,
        playbook: Playbook,
        move: Move | _Standing,
        without: frozenset[str] = frozenset(),
    ) -> Decision | None:
        turns = self._locked.turns.get(role)
        if turns is None or record.lead is None:
            return None
        routing = playbook.routing.get(role)
        lead = record.lead
        account = account_of(lead.email, lead.attributes) if asks_account(routing) else None
        owner = self._locked.account_owners.get((account or "", role))
        case = Case(
            role, self._at, record.lead.attributes, _Values(playbook, record.lead, move), account,
            owner, self._locked.loads, without,
        )  # fmt: skip
        team = self._roster.team
        decision = route(case, routing, team, turns)
        known = team.by_id.get(owner or "")
        is_free = known is None or role not in known.roles  # nobody's yet, or of somebody who left
        if account is not None and is_free and decision.rule and decision.person:
            self._locked.account_owners[account, role] = decision.person
            self._owned[account, role] = decision.person
        return decision

    async def own_accounts(self, connection: Connection) -> None:
        """Record the accounts that got an owner."""
        if self._owned:
            await store.own_accounts(connection, self._owned)


class _Values:
    """What a routing condition may ask of a journey that has just made a move, or stands."""

    __slots__ = ("_journey", "_lead", "_move", "_playbook")

    def __init__(self, playbook: Playbook, lead: Lead, move: Move | _Standing) -> None:
        self._playbook = playbook
        self._lead = lead
        self._move = move
        self._journey = lead.journeys[move.journey]

    def __call__(self, name: str) -> Any:
        """Give the value of a declared variable, or None when it is not known."""
        room, _, attribute = name.partition(".")
        lead, move = self._lead, self._move
        match room:
            case "lead":
                if attribute == "email":
                    return lead.email
                return self._playbook.coerced("lead", attribute, lead.attributes.get(attribute))
            case "deal":
                deal = lead.attributes if move.key == MAIN else self._journey.deal
                return self._playbook.coerced("deal", attribute, deal.get(attribute))
            case "known":
                return self(attribute) is not None
            case "score":
                return getattr(move.score, attribute)
            case _:
                if attribute == "furthest_stage":
                    return self._journey.furthest
                return move.key if attribute == "key" else move.to_stage
