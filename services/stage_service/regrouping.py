"""Whose events a batch holds, and what that does to leads: asks what is known, decides, merges, parts.

Between the look-up, which has locked the leads, and the fold. It costs nothing when no event names
identities of different leads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from services.contracts.events import CLAIMED_TIME, MERGED_BY_HAND, UNMERGED_BY_HAND, LeadEvent
from services.stage_service import merging, parting
from services.stage_service.identities import LEAD_IDENTITY, Key, Policy
from services.stage_service.journal import Journal
from services.stage_service.merging import Change
from services.stage_service.parting import Parting
from services.stage_service.resolution import Resolution, involved
from services.stage_service.shelf import Shelf
from services.stage_service.store import Connection, Record

_MERGED = "a merge with another lead changed its history"
_PARTED = "parting it from another lead changed its history"


class Regrouping:
    """The leads of one batch; use once: `look` at what is known, `lead_of` each event, then `apply`."""

    def __init__(
        self,
        connection: Connection,
        shelf: Shelf,
        journal: Journal,
        policy: Policy,
        new_id: Callable[[], str],
    ) -> None:
        self._connection = connection
        self._shelf = shelf
        self._journal = journal
        self._policy = policy
        self._new_id = new_id
        self._resolution = Resolution({}, {}, (), policy, new_id)
        self._partings: list[Parting] = []
        self._changes: dict[str, Change] = {}

    @property
    def claims(self) -> dict[Key, str]:
        """The identities that nobody owned, with their leads."""
        return self._resolution.claims

    @property
    def new(self) -> set[str]:
        """The leads that are made."""
        return self._resolution.new

    @property
    def parted(self) -> set[str]:
        """The merged leads that are by themselves again after this batch."""
        return {wish.merged for wish in self._partings}

    @property
    def unclaimed(self) -> int:
        """How many identities were not taken because their lead has the most allowed."""
        return self._resolution.unclaimed

    @property
    def refused(self) -> int:
        """How many links were not made."""
        return len(self._resolution.refusals)

    @property
    def merged(self) -> int:
        """How many leads became part of another."""
        return len(self._resolution.links)

    async def look(self, keys: Iterable[Sequence[Key]], owned: dict[Key, str]) -> None:
        """Take whose the identities are, and ask for more only where events may link leads.

        The leads are locked, so that what is asked now holds until the commit.
        """
        linked = involved(keys, owned)
        standing, barred = {}, []
        if linked:
            standing, barred = await merging.standing_of(self._connection, linked)
        self._resolution = Resolution(owned, standing, barred, self._policy, self._new_id)

    def lead_of(self, event: LeadEvent, keys: Sequence[Key]) -> tuple[str | None, list[str]]:
        """Give the lead of `event` that names `keys`, new when nobody has any of them; and warnings."""
        ahead = event.envelope.get(CLAIMED_TIME)
        said = [f"time {ahead} is ahead of now: held to the arrival"] if ahead else []
        if not keys:
            nobody = "no email, external_ids, phone or anonymous_id in data: kept, about no lead"
            return None, [nobody, *said]
        if keys[0][0] != LEAD_IDENTITY:
            lead_id, warnings = self._resolution.place(event, keys)
            return lead_id, [*warnings, *said]
        if event.type == MERGED_BY_HAND:
            return self._resolution.by_hand(event, str(event.data["reason"])), said
        if event.type == UNMERGED_BY_HAND:
            self._partings.append(
                Parting(str(event.data["merge_id"]), keys[0][1], str(event.data["lead"]), event)
            )
        return keys[0][1], said

    def root(self, lead_id: str) -> str:
        """Give the lead that `lead_id` is part of when this batch is done."""
        return self._resolution.root(lead_id)

    @property
    def moves_events(self) -> bool:
        """Whether leads that events were given to are part of others by now."""
        return bool(self._resolution.links) or self._resolution.merged_new

    async def apply(
        self, records: dict[str, Record], by_lead: dict[str, list[LeadEvent]]
    ) -> dict[str, Change] | None:
        """Merge the leads that events link, and part those parted by hand; give whose history changes.

        None when a merge that is to be undone was undone, or its lead parted from another, meanwhile.
        """
        links = self._resolution.links
        if (links or self._partings) and any(
            not self._shelf.knows(journey.playbook, journey.version)
            for record in records.values() if record.lead is not None
            for journey in record.lead.journeys.values()
        ):  # fmt: skip
            await self._shelf.load(self._connection)  # published while we waited for the locks
        for link in links:
            self._change(records, self.root(link.survivor), link.cause,
                         (link.survivor, link.merged),
                         _MERGED)  # fmt: skip
        if links:
            self._journal.written.messages += await merging.absorb(
                self._connection, links, records, self.root, self._journal.recorded_at, self._new_id
            )
        for wish in self._partings:
            one, other = wish.survivor, wish.merged
            # Who holds the whole now has been told of what happens to be the other's.
            for lead_id, sides in ((one, (one,)), (other, (other, one))):
                self._change(records, lead_id, wish.event, sides, _PARTED)
            by_lead.setdefault(other, [])
            done = await parting.part(
                self._connection, wish, records, self._policy, self._journal.recorded_at,
                self._new_id,
            )  # fmt: skip
            if done is None:
                return None
            self._journal.written.messages += done.messages
            self._held(one, done.held_by)
            for record in done.gone:
                self._change({record.id: record}, other, wish.event, (record.id,), _PARTED)
        return self._changes

    def _held(self, lead_id: str, held_by: dict[str, set[tuple[str, str | None]]]) -> None:
        """Note who else held the journeys of `lead_id`, of which they were told then."""
        change = self._changes.get(lead_id)
        if change is not None and change.held_by is not None:
            for name, holders in held_by.items():
                change.held_by.setdefault(name, set()).update(holders)

    def _change(
        self,
        records: dict[str, Record],
        lead_id: str,
        cause: LeadEvent,
        sides: Iterable[str],
        because: str,
    ) -> None:
        """Note that the history of `lead_id` is told anew, and who held its journeys on all `sides`."""
        for side in sides:
            record = records[side]
            if record.lead is None:
                continue
            change = self._changes.setdefault(lead_id, Change(cause, because, record.lead.last, {}))
            change.last = max(change.last, record.lead.last)
            for name, journey in record.lead.journeys.items():
                playbook = self._shelf.version(journey.playbook, journey.version)
                role = playbook.stage_of(journey.stage, journey.version).responsible[0]
                facts = record.facts.get(name)
                owner = facts.owners.get(role) if facts is not None else None
                assert change.held_by is not None  # noqa: S101
                change.held_by.setdefault(name, set()).add((role, owner.id if owner else None))
