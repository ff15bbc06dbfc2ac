"""Undoing a merge: events, identities, journeys and owners go back to whose they were.

What came while two leads were one goes to whichever owns its strongest identity; and a third lead that
such an event merged in goes with it. A barrier stays: no event merges the two again by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.events import LEAD_MERGED, LEAD_UNMERGED, LeadEvent, Message
from services.contracts.published import Cause, LeadMerged, LeadUnmerged
from services.stage_service import store
from services.stage_service.identities import Key, Policy, keys_of
from services.stage_service.journal import journey_id
from services.stage_service.merging import actor_of, inherit, owners_of, told_of
from services.stage_service.store import Connection, Facts, Record, as_json


class Parting(msgspec.Struct, frozen=True):
    """A merge that is to be undone, as its lead event names it."""

    merge_id: str
    survivor: str
    merged: str
    event: LeadEvent


class Follower(msgspec.Struct):
    """A third lead, merged in by `event` while both were one; `tree`: it, and what is part of it."""

    merge_id: str
    lead: str
    event: tuple[str, str]
    tree: list[str]


class Parted(msgspec.Struct):
    """What comes of undoing a merge; `held_by` gives (role, owner id) by journey name."""

    messages: list[Message]
    gone: list[Record]
    held_by: dict[str, set[tuple[str, str | None]]]


# The leads that were merged into $1, and into these, and so on.
_TREE = """
WITH RECURSIVE tree(id) AS (
  SELECT $1::uuid UNION SELECT l.id FROM stage.leads l JOIN tree t ON l.merged_into = t.id)
SELECT id::text FROM tree
"""

_RETURN = """
WITH told AS (
  UPDATE stage.events SET lead_id = $2 WHERE lead_id = $1 AND own_lead_id = ANY($3::uuid[])),
named AS (
  UPDATE stage.identities SET lead_id = $2 WHERE lead_id = $1 AND own_lead_id = ANY($3::uuid[])),
forgotten AS (DELETE FROM stage.barriers WHERE inherited_by = $4),
freed AS (
  UPDATE stage.leads SET regrouped_by = pg_current_xact_id(),
    merged_into = CASE WHEN id = $2 THEN NULL ELSE merged_into END WHERE id IN ($1, $2))
UPDATE stage.merges SET undone_at = $5, undone_by = $6, undone_reason = $7, undone_event_id = $8
WHERE id = $4 AND undone_at IS NULL RETURNING survivor::text, owners, recorded_at
"""

# $1, the lead it is part of, and so on, each with the merge that put the one before it there.
_WAY = """
WITH RECURSIVE way(id, merge_id, step) AS (
  SELECT $1::uuid, NULL::uuid, 0
  UNION ALL SELECT m.survivor, m.id, w.step + 1 FROM way w
    JOIN stage.merges m ON m.merged = w.id AND m.undone_at IS NULL)
SELECT id::text, merge_id::text FROM way ORDER BY step
"""

# Leads above the one that it was parted from stay apart as long as that one is part of them.
_BAR = """
INSERT INTO stage.barriers AS b (one, other, merge_id, inherited_by)
SELECT least($1, k.id), greatest($1, k.id), $2, k.merge_id
FROM unnest($3::uuid[], $4::uuid[]) AS k(id, merge_id)
ON CONFLICT (one, other) DO UPDATE SET inherited_by = NULL WHERE excluded.inherited_by IS NULL
"""

_LATER = """
SELECT source, id, data FROM stage.events
WHERE lead_id = $1 AND (own_lead_id IS NULL OR own_lead_id = ANY($2::uuid[])) AND source <> 'baton'
ORDER BY recorded_at, source, id
"""

_GIVE = """
WITH told AS (
  UPDATE stage.events e SET lead_id = $1, own_lead_id = NULL
  FROM unnest($2::text[], $3::text[]) AS k(source, id)
  WHERE e.source = k.source AND e.id = k.id)
UPDATE stage.identities i SET lead_id = $1, own_lead_id = NULL
FROM unnest($4::text[], $5::text[]) AS k(kind, value) WHERE i.kind = k.kind AND i.value = k.value
"""

_FOLLOW = """
WITH told AS (
  UPDATE stage.events SET lead_id = $2 WHERE lead_id = $1 AND own_lead_id = ANY($4::uuid[])),
named AS (
  UPDATE stage.identities SET lead_id = $2 WHERE lead_id = $1 AND own_lead_id = ANY($4::uuid[])),
led AS (UPDATE stage.leads SET merged_into = $2 WHERE id = $3)
UPDATE stage.merges SET undone_at = $5, undone_by = $6, undone_reason = $7, undone_event_id = $8
WHERE id = $9
"""

_AGAIN = """
INSERT INTO stage.merges (id, survivor, merged, event_source, event_id, event_type, occurred_at,
  recorded_at, identities, reason, owners, actor)
SELECT $2, $3, merged, event_source, event_id, event_type, occurred_at, $4, identities, reason, $5, actor
FROM stage.merges WHERE id = $1 RETURNING event_type, occurred_at, identities, reason, actor
"""


async def part(
    connection: Connection,
    parting: Parting,
    records: dict[str, Record],
    policy: Policy,
    recorded_at: datetime,
    new_id: Callable[[], str],
) -> Parted | None:
    """Undo a merge whose leads are locked as `records`; None when others were faster.

    Gives what is published, the third leads that go with the merged one, as they were, and who held the
    survivor's journeys before the merge.
    """
    event, survivor, merged = parting.event, parting.survivor, parting.merged
    reason = str(event.data.get("reason") or "")
    tree = [row["id"] for row in await connection.fetch(_TREE, merged)]
    undone = (recorded_at, actor_of(event), reason, event.id)
    done = await connection.fetchrow(
        _RETURN, survivor, merged, tree, parting.merge_id, *undone
    )  # fmt: skip
    if done is None:
        return None
    way = await connection.fetch(_WAY, done["survivor"])
    if way[-1]["id"] != survivor:  # the merged lead is part of another by now
        return None
    holders = [row["id"] for row in way]
    await connection.execute(
        _BAR, merged, parting.merge_id, holders, [row["merge_id"] for row in way]
    )
    followers = await _share_later(connection, holders, merged, done["recorded_at"], policy)
    held_by: dict[str, set[tuple[str, str | None]]] = {}
    if done["survivor"] == survivor:
        before: dict[str, dict[str, list[str]]] = msgspec.json.decode(done["owners"])
        _take_back(records[survivor], records[merged], before)
        for name, owners in before.items():
            held_by[name] = {(role, owner[0]) for role, owner in owners.items()}
    await store.restore_journeys(connection, records[merged], journey_id)
    cause = Cause(event.id, event.source, event.type, None, actor_of(event))
    messages = told_of(LEAD_UNMERGED, LeadUnmerged(
        parting.merge_id, merged, survivor, merged, reason, cause, event.time, recorded_at,
    ), event, new_id)  # fmt: skip
    gone: list[Record] = []
    for follower in followers:
        state = await connection.fetchval(
            "SELECT state FROM stage.leads WHERE id = $1", follower.lead
        )
        record = store.unpack_record(follower.lead, state)
        gone.append(record)
        await connection.execute(
            _FOLLOW, survivor, merged, follower.lead, follower.tree, *undone, follower.merge_id
        )
        messages += told_of(LEAD_UNMERGED, LeadUnmerged(
            follower.merge_id, follower.lead, survivor, follower.lead, reason, cause, event.time,
            recorded_at,
        ), event, new_id)  # fmt: skip
        messages += await _merge_again(
            connection, follower, records[merged], record, event, recorded_at, new_id
        )
    return Parted(messages, gone, held_by)


async def _merge_again(
    connection: Connection,
    follower: Follower,
    into: Record,
    record: Record,
    event: LeadEvent,
    recorded_at: datetime,
    new_id: Callable[[], str],
) -> list[Message]:
    """Record that a third lead is part of the parted one, for the reason it was part of both."""
    id = new_id()
    row = await connection.fetchrow(
        _AGAIN, follower.merge_id, id, into.id, recorded_at, as_json(owners_of(into))
    )
    assert row is not None  # noqa: S101  it has just been read
    inherit(into, record)
    source, event_id = follower.event
    return told_of(LEAD_MERGED, LeadMerged(
        id, follower.lead, into.id, follower.lead, row["reason"], row["identities"],
        Cause(event_id, source, row["event_type"], None, row["actor"]), row["occurred_at"],
        recorded_at,
    ), event, new_id)  # fmt: skip


async def _share_later(
    connection: Connection, holders: list[str], merged: str, since: datetime, policy: Policy
) -> list[Follower]:
    """Give `merged` the events that came after the merge and name it first, and what they claimed.

    `holders` are the lead it was merged into at the moment `since`, the one that is part of by now, and so
    on to the survivor of all. Gives the third leads that such an event merged in.
    """
    survivor = holders[-1]
    followers = await _followers(connection, holders)
    owned: dict[Key, str] = {}
    unsettled: set[Key] = set()
    own_by_key: dict[Key, str | None] = {}
    for kind, value, lead, own, is_later in await connection.fetch(
        """SELECT kind, value, lead_id::text, own_lead_id::text, recorded_at >= $3
           FROM stage.identities WHERE lead_id IN ($1, $2)""",
        survivor, merged, since,
    ):  # fmt: skip
        own_by_key[kind, value] = own
        # Claimed after the merge: the events say by whom, in the order they came.
        if lead == survivor and (own is None or (own in holders and is_later)):
            unsettled.add((kind, value))
        else:
            owned[kind, value] = lead
    told: list[tuple[tuple[str, str], Sequence[Key]]] = []
    for source, id, data in await connection.fetch(_LATER, survivor, holders):
        said = msgspec.json.decode(data)
        told.append(((source, id), keys_of(store.sent_identities(said), said, policy)[0]))
    share = _Share(survivor, merged, owned, unsettled, own_by_key, followers)
    while share.take(told):
        told = [each for each in told if each[0] not in share.events]
    if share.events:
        await connection.execute(
            _GIVE, merged, [e[0] for e in share.events], [e[1] for e in share.events],
            [k[0] for k in share.claimed], [k[1] for k in share.claimed],
        )  # fmt: skip
    return share.going


class _Share:
    """What goes with `merged` of what came while it was part of `survivor`. Pure.

    `owned` says whose the identities are that are settled, and learns; `own_by_key` whose they were.
    """

    def __init__(
        self,
        survivor: str,
        merged: str,
        owned: dict[Key, str],
        unsettled: set[Key],
        own_by_key: dict[Key, str | None],
        followers: dict[tuple[str, str], list[Follower]],
    ) -> None:
        self._survivor = survivor
        self._merged = merged
        self._owned = owned
        self._unsettled = unsettled
        self._own_by_key = own_by_key
        self._followers = followers
        self.events: dict[tuple[str, str], None] = {}
        self.claimed: list[Key] = []
        self.going: list[Follower] = []

    def take(self, told: Sequence[tuple[tuple[str, str], Sequence[Key]]]) -> bool:
        """Decide of the events `told`, in the order they came.

        True when a third lead goes too: one that was told before, in the same batch, may be that lead's.
        """
        owned, going = self._owned, len(self.going)
        for event, keys in told:
            here = self._followers.get(event, ())
            # What a third lead brought itself does not say which of both it was merged for.
            brought = {key for key in keys for f in here if self._own_by_key.get(key) in f.tree}
            lead = next((owned[k] for k in keys if k in owned and k not in brought), self._survivor)
            free = [key for key in keys if key in self._unsettled and key not in owned]
            owned.update(dict.fromkeys(free, lead))
            if lead != self._merged:
                continue
            self.events[event] = None
            self.claimed += free
            for follower in here:
                self.going.append(follower)
                theirs = (k for k, own in self._own_by_key.items() if own in follower.tree)
                owned.update(dict.fromkeys(theirs, self._merged))
        return len(self.going) > going


async def _followers(
    connection: Connection, holders: list[str]
) -> dict[tuple[str, str], list[Follower]]:
    """Give the leads that are directly part of one of `holders`, by the event that merged them in."""
    found: dict[tuple[str, str], list[Follower]] = {}
    for row in await connection.fetch(
        """SELECT id::text, merged::text, event_source, event_id FROM stage.merges
           WHERE survivor = ANY($1::uuid[]) AND merged <> ALL($1::uuid[]) AND undone_at IS NULL
             AND event_source <> 'baton'""",
        holders,
    ):
        tree = [r["id"] for r in await connection.fetch(_TREE, row["merged"])]
        key = (row["event_source"], row["event_id"])
        found.setdefault(key, []).append(Follower(row["id"], row["merged"], key, tree))
    return found


def _take_back(survivor: Record, merged: Record, before: dict[str, dict[str, Any]]) -> None:
    """Part the owners: what came with the merged lead goes with it, who was chosen since stays with both."""
    for name, facts in survivor.facts.items():
        theirs = merged.facts.get(name)
        if theirs is None:
            continue
        kept = before.get(name, {})
        since = {role: owner for role, owner in facts.owners.items() if role not in kept}
        owners = {
            role: owner
            for role, owner in facts.owners.items()
            if role in kept or theirs.owners.get(role) != owner
        }
        survivor.facts[name] = Facts(facts.sequence, owners, facts.clocks, facts.aside)
        merged.facts[name] = Facts(
            theirs.sequence, {**since, **theirs.owners}, theirs.clocks, theirs.aside
        )
