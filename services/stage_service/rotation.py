"""Whose turn it is: shares by weight, never a whole lead off. Pure.

Two things are kept. While the same people are available (a run), each one's share stays within one lead
of the weight: the k-th lead of somebody with share p falls into the turns (k-1)/p to k/p of the run, and
nobody gets a turn that would make another miss theirs. These are the windows of proportionate fairness
(Baruah, Cohen, Plaxton, Varvel: Algorithmica 15, 1996), in whole numbers. Where they leave a choice, it goes
to whom most is owed over all runs: what their weight gave them of each lead they were available for, less
what they got. So runs of one lead, as territories make them, are fair too. What is owed stands still while
somebody is away, and a run never makes good more than it must: nobody comes back to a flood.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec

WEIGHT_STEPS = 1_000_000
"""Weights are counted in millionths, so that no rounding ever decides."""
LOOK_AHEAD_TURNS = 500
"""Who has a turn further off than this waits for it: looking further would cost more than it gives."""
_TIE_DIGITS = 9


class Fairness(msgspec.Struct):
    """What is owed to each person, and the present run: who is in it (a digest), and what each got in it."""

    owed: dict[str, float] = {}
    run: str = ""
    got: dict[str, int] = {}


class Turns(msgspec.Struct):
    """The rotation of one role: journeys given by person, and what keeps it fair."""

    given: dict[str, int] = {}
    fairness: Fairness = msgspec.field(default_factory=Fairness)

    def take(self, weights: Sequence[tuple[str, float]]) -> str:
        """Give the id of the person whose turn it is, and count it.

        `weights` are the people available (id, weight above 0), in the roster's order; not empty.
        """
        now = self.fairness
        steps, total, run = _run_of(tuple(weights))
        if run != now.run:
            now.run, now.got = run, {}
        for id, step in steps.items():
            now.owed[id] = now.owed.get(id, 0.0) + step / total
        wanted = sorted(steps, key=lambda who: -round(now.owed[who], _TIE_DIGITS))
        chosen = _first_safe(wanted, steps, total, now.got)
        now.owed[chosen] -= 1
        now.got[chosen] = now.got.get(chosen, 0) + 1
        return self.count(chosen)

    def count(self, id: str) -> str:
        """Count one journey given to the person `id`, and give `id`."""
        self.given[id] = self.given.get(id, 0) + 1
        return id


@lru_cache(maxsize=256)
def _run_of(weights: tuple[tuple[str, float], ...]) -> tuple[Mapping[str, int], int, str]:
    """Give the weights in whole steps, their sum, and the digest that names a run of these people."""
    steps = {id: max(1, round(weight * WEIGHT_STEPS)) for id, weight in weights}
    run = hashlib.sha1(repr(steps).encode(), usedforsecurity=False).hexdigest()[:12]
    return steps, sum(steps.values()), run


def _first_safe(
    wanted: Sequence[str], steps: Mapping[str, int], total: int, got: Mapping[str, int]
) -> str:
    """Give the first of `wanted` whose window is open and who makes nobody miss theirs."""
    turn = sum(got.values()) + 1
    deadlines: dict[str, int] = {}
    for id in wanted:
        mine = got.get(id, 0)
        if turn > mine * total // steps[id]:
            deadlines[id] = -(-(mine + 1) * total // steps[id])
    soonest = min(deadlines, key=lambda who: (deadlines[who], wanted.index(who)))
    for id, deadline in deadlines.items():
        if id == soonest or _is_safe(turn, deadline, steps, total, got):
            return id
    return soonest


def _is_safe(
    turn: int, deadline: int, steps: Mapping[str, int], total: int, got: Mapping[str, int]
) -> bool:
    """Tell whether whatever falls due before `deadline` still fits into the turns after `turn`."""
    if deadline - turn > LOOK_AHEAD_TURNS:
        return False
    for later in range(turn, deadline):
        due = sum(max(0, step * later // total - got.get(id, 0)) for id, step in steps.items())
        if due > later - turn:
            return False
    return True


def lightest(weights: Sequence[tuple[str, float]], loads: Mapping[str, int], turns: Turns) -> str:
    """Give who holds the least for their weight, of equals who was given least, and count it."""
    chosen = min(
        weights, key=lambda w: (loads.get(w[0], 0) / w[1], turns.given.get(w[0], 0) / w[1])
    )
    return turns.count(chosen[0])
