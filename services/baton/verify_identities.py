"""What `baton verify` checks of who is who: a lead's identities are those that its events name.

Knows no settings, so it asks less than they say: an address may be folded, and a phone is any number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from services.contracts.events import SOURCE, LeadEvent
from services.stage_service.identities import Key, Policy, keys_of, spoken
from services.stage_service.store import Connection

_FOLDING = tuple(
    Policy(fold_plus=plus, fold_dots=dots, ignored_values=frozenset(), shared_mailboxes=frozenset())
    for plus, dots in ((False, False), (True, False), (False, True), (True, True))
)


async def identities_of_leads(connection: Connection, ids: Sequence[str]) -> dict[str, set[Key]]:
    """Give the identities that each of the leads `ids` owns."""
    owned: dict[str, set[Key]] = {id: set() for id in ids}
    for lead, kind, value in await connection.fetch(
        "SELECT lead_id::text, kind, value FROM stage.identities WHERE lead_id = ANY($1::uuid[])",
        ids,
    ):
        owned[lead].add(_loose(kind, value))
    return owned


def check_identities(
    lead_id: str, owned: set[Key], events: Iterable[LeadEvent], found: Callable[[str], None]
) -> None:
    """Compare what the lead owns with what its `events` name; `found` hears of what is wrong."""
    named: set[Key] = set()
    for event in events:
        if event.source == SOURCE:  # names its lead by id
            continue
        keys = {_loose(*k) for policy in _FOLDING for k in keys_of(event.identities, {}, policy)[0]}
        keys.update(_loose(kind, "") for kind, _ in event.identities if kind == "phone")
        named |= keys
        if keys.isdisjoint(owned):
            found(f"event {event.id} of {event.source}: lead {lead_id} owns nothing that it names")
    for kind in sorted(spoken(kind) for kind, _ in owned - named):
        found(f"lead {lead_id}: none of its events names the {kind} that it owns")


def _loose(kind: str, value: str) -> Key:
    if kind == "phone":
        return kind, ""
    return kind, value.lower() if kind == "email" else value
