"""Who an event is about: when two leads are the same, when not, and why. Pure.

`decide` says, from the keys that an event names, their owners and what is known of these leads, whose
event it is, which leads it shows to be one person, and which links are refused and why. `Resolution` does
so for the events of a batch, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from services.contracts.events import LeadEvent
from services.stage_service.identities import LEAD_IDENTITY, Key, Policy, is_anchor, spoken


class Standing(msgspec.Struct, frozen=True, gc=False):
    """What is known of a lead: whether an address or external id is its own, and how many identities.

    `is_recorded` is False for one that this batch makes: nobody has heard of it yet.
    """

    is_known: bool
    identities: int
    is_recorded: bool = True


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A link that an event suggests and that is not made."""

    lead: str
    kind: str
    reason: str


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Whose event it is (`lead` None: of a new lead), and what follows for others.

    `merged` are the same person as `lead` and older ones survive: `lead` is the oldest. `linked` are
    the kinds of identities that say so.
    """

    lead: str | None
    merged: list[str]
    linked: list[str]
    refused: list[Refusal]
    claimed: list[Key]
    unclaimed: list[Key]


class Link(msgspec.Struct, frozen=True, gc=False):
    """Two recorded leads that `cause` shows to be one person."""

    survivor: str
    merged: str
    cause: LeadEvent
    linked: list[str]
    reason: str


def decide(
    keys: Sequence[Key],
    owned: Mapping[Key, str],
    standing: Mapping[str, Standing],
    is_barred: Callable[[str, str], bool],
    policy: Policy,
) -> Decision:
    """Decide whose event it is that names `keys` (strongest first), `owned` by some leads.

    `standing` knows every owner when there are several, or one and a key that nobody owns. `is_barred`
    tells of two leads that were parted by hand.
    """
    first_kind: dict[str, str] = {}
    strongly: list[str] = []
    names_strongly = False
    for key in keys:
        strong = is_anchor(key)
        names_strongly |= strong
        owner = owned.get(key)
        if owner is not None:
            first_kind.setdefault(owner, key[0])
            if strong and owner not in strongly:
                strongly.append(owner)
    free = [key for key in keys if key not in owned]
    most = policy.identities_max
    if not first_kind:
        return Decision(None, [], [], [], free[:most], free[most:])
    if len(first_kind) == 1 and not free:
        return Decision(next(iter(first_kind)), [], [], [], [], [])
    visitors = [i for i in first_kind if not standing[i].is_known and i not in strongly]
    known = [i for i in first_kind if standing[i].is_known and i not in strongly]
    chosen: list[str] = []
    if not strongly and not names_strongly and known:
        chosen.append(known.pop(0))
    refused = [
        Refusal(
            other, first_kind[other], "that lead is known by a stronger identity of its own, and "
            f"{spoken(first_kind[other])} may be shared",
        )
        for other in known
    ]  # fmt: skip
    for lead in (*strongly, *visitors):
        reason = _why_not(lead, chosen, standing, is_barred, policy)
        if reason is None:
            chosen.append(lead)
        else:
            refused.append(Refusal(lead, first_kind[lead], reason))
    if not chosen:
        return Decision(None, [], [], refused, free[:most], free[most:])
    oldest = min(chosen, key=lambda i: (not standing[i].is_recorded, i))
    room = max(0, most - sum(standing[i].identities for i in chosen))
    return Decision(
        oldest, [i for i in chosen if i != oldest],
        [first_kind[i] for i in chosen] if len(chosen) > 1 else [],
        refused, free[:room], free[room:],
    )  # fmt: skip


def _why_not(
    lead: str,
    chosen: Sequence[str],
    standing: Mapping[str, Standing],
    is_barred: Callable[[str, str], bool],
    policy: Policy,
) -> str | None:
    """Say why `lead` is not joined with those `chosen` already; None when it is."""
    if not chosen:
        return None
    if not policy.automatic:
        return "leads are merged by hand only (BATON_IDENTITY_AUTOMATIC_MERGES)"
    if any(is_barred(lead, other) for other in chosen):
        return "they were parted by hand"
    together = standing[lead].identities + sum(standing[i].identities for i in chosen)
    if together > policy.identities_max:
        return (
            f"together they would have {together} identities, and {policy.identities_max} are allowed: "
            "somebody may send one id for many people"
        )
    return None


class Resolution:
    """Finds the leads of a batch's events, in their order; gives claims, links and new leads.

    `standing` and `barred` (pairs of lead ids) are needed for the leads that `involved` names.
    """

    def __init__(
        self,
        owned: dict[Key, str],
        standing: Mapping[str, Standing],
        barred: Iterable[tuple[str, str]],
        policy: Policy,
        new_id: Callable[[], str],
    ) -> None:
        self._owned = owned
        self._standing = dict(standing)
        self._barred = {frozenset(pair) for pair in barred}
        self._policy = policy
        self._new_id = new_id
        self._into: dict[str, str] = {}
        self._claims: dict[Key, str] = {}
        self._new: set[str] = set()
        self.merged_new = False
        """Whether two leads that this batch would have made turned out to be one."""
        self.links: list[Link] = []
        self.refusals: list[Refusal] = []
        self.unclaimed = 0

    @property
    def claims(self) -> dict[Key, str]:
        """The identities that nobody owned, with their leads."""
        return {key: self.root(lead) for key, lead in self._claims.items()}

    @property
    def new(self) -> set[str]:
        """The leads that are made."""
        return {lead for lead in self._new if lead not in self._into}

    def root(self, lead: str) -> str:
        """Give the lead that `lead` is part of now."""
        while lead in self._into:
            lead = self._into[lead]
        return lead

    def place(self, event: LeadEvent, keys: Sequence[Key]) -> tuple[str, list[str]]:
        """Give the lead of `event` that names `keys` (at least one), and warnings."""
        if len(keys) == 1:
            owner = self._owned.get(keys[0])
            if owner is not None:
                return self.root(owner), []
            lead = self._new_id()
            self._new.add(lead)
            self._claim(lead, keys)
            return lead, []
        owned = {key: self.root(self._owned[key]) for key in keys if key in self._owned}
        decision = decide(keys, owned, self._standing, self._is_barred, self._policy)
        lead = decision.lead
        if lead is None:
            lead = self._new_id()
            self._new.add(lead)
        for other in decision.merged:
            self._join(lead, other, event, decision.linked)
        self._claim(lead, decision.claimed)
        return lead, self._warnings(decision)

    def by_hand(self, event: LeadEvent, reason: str) -> str:
        """Join the leads that `event` names by id; the oldest survives and is given."""
        ids = sorted(self.root(value) for _, value in event.identities)
        for other in ids[1:]:
            if other != ids[0]:
                self._into[other] = ids[0]
                self.links.append(Link(ids[0], other, event, [LEAD_IDENTITY], reason))
        return ids[0]

    def _is_barred(self, one: str, other: str) -> bool:
        return any(
            {self.root(a) for a in pair} == {one, other} for pair in self._barred if len(pair) == 2
        )

    def _join(self, lead: str, other: str, event: LeadEvent, linked: list[str]) -> None:
        self._into[other] = lead
        mine, theirs = self._standing[lead], self._standing[other]
        self._standing[lead] = Standing(
            mine.is_known or theirs.is_known, mine.identities + theirs.identities,
            mine.is_recorded,
        )  # fmt: skip
        if not theirs.is_recorded:
            self.merged_new = True
        else:
            kinds = list(dict.fromkeys(linked))
            said = " and ".join(spoken(kind) for kind in kinds)
            reason = f"{event.type} names both by {said}"
            self.links.append(Link(lead, other, event, kinds, reason))

    def _claim(self, lead: str, keys: Sequence[Key]) -> None:
        if not keys:
            return
        before = self._standing.get(lead, Standing(False, 0, lead not in self._new))
        for key in keys:
            self._owned[key] = self._claims[key] = lead
        self._standing[lead] = Standing(
            before.is_known or any(is_anchor(k) for k in keys),
            before.identities + len(keys), before.is_recorded,
        )  # fmt: skip

    def _warnings(self, decision: Decision) -> list[str]:
        found: list[str] = []
        for refusal in decision.refused:
            self.refusals.append(refusal)
            found.append(
                f"its {spoken(refusal.kind)} also belongs to lead {refusal.lead}: not merged, "
                f"{refusal.reason}"
            )
        if decision.unclaimed:
            self.unclaimed += len(decision.unclaimed)
            found.append(
                f"the lead has {self._policy.identities_max} identities, the most allowed: "
                f"{len(decision.unclaimed)} more not taken as its own"
            )
        return found


def involved(keys: Iterable[Sequence[Key]], owned: Mapping[Key, str]) -> set[str]:
    """Give the recorded leads whose standing a `Resolution` of events with these `keys` may ask for."""
    found: set[str] = set()
    for each in keys:
        if len(each) > 1:
            owners = {owned.get(key) for key in each}
            if len(owners) > 1:
                found |= {owner for owner in owners if owner is not None}
    return found
