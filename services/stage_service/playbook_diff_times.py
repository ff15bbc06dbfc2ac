"""What differs in a playbook's handoffs and clocks. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from services.stage_service.playbook import ClockPlan
from services.stage_service.playbook_diff_words import Change, Pair, listed
from services.stage_service.playbook_drawing import deadline_of, steps_told


def handoff_changes(pair: Pair) -> Iterable[Change]:
    """Compare how each role answers what is handed to it."""
    before, after = pair.before.handoffs, pair.after.handoffs
    for role, new in after.items():
        old = before.get(role)
        where, title = f"handoffs.{role}", pair.after.roles[role].title
        if old is None:
            yield Change(
                "handoff-added", where,
                f"What is handed to {title} needs an answer now, {deadline_of(new.clock)}.",
                None, deadline_of(new.clock), moves=pair.answers_matter or pair.deadlines_matter,
            )  # fmt: skip
            continue
        yield from _deadline(pair, f"A handoff to {title}", where, old.clock, new.clock)
        if old.accepted_by != new.accepted_by:
            types = sorted(new.accepted_by)
            said = f"is taken up by {listed(types)} now" if types else "is taken up by no event now"
            yield Change(
                "handoff-accepted-by", f"{where}.accepted_by", f"A handoff to {title} {said}.",
                ", ".join(sorted(old.accepted_by)) or None, ", ".join(types) or None,
                moves=pair.answers_matter or pair.deadlines_matter,
            )  # fmt: skip
        if old.reasons != new.reasons:
            yield Change(
                "handoff-reasons", f"{where}.reasons",
                f"{title} is offered other reasons of a rejection.", "; ".join(old.reasons) or None,
                "; ".join(new.reasons) or None, moves=False,
            )  # fmt: skip
    for role, old in before.items():
        if role not in after:
            yield Change(
                "handoff-removed", "handoffs",
                f"What is handed to {pair.before.roles[role].title} needs no answer any more.",
                deadline_of(old.clock), None, moves=pair.answers_matter or pair.deadlines_matter,
            )  # fmt: skip


def clock_changes(pair: Pair) -> Iterable[Change]:
    """Compare the clocks of stages."""
    before = {clock.key: clock for clock in pair.before.clocks}
    after = {clock.key: clock for clock in pair.after.clocks}
    for key, new in after.items():
        old = before.get(key)
        where = f"clocks.{key}"
        stages = listed(s for s in pair.after.stages if s in new.stages)
        if old is None:
            yield Change(
                "clock-added", where,
                f"A new clock {key} runs in {stages}: {new.title}, {deadline_of(new)}.", None,
                deadline_of(new), moves=pair.deadlines_matter,
            )  # fmt: skip
            continue
        if pair.now(old.stages) != new.stages:
            yield Change(
                "clock-stages", f"{where}.stages", f"The clock {key} runs in {stages} now.",
                ", ".join(sorted(old.stages)), ", ".join(sorted(new.stages)),
                moves=pair.deadlines_matter,
            )  # fmt: skip
        if old.title != new.title:
            yield Change(
                "clock-title", f"{where}.title", f"The clock {key} is called {new.title!r} now.",
                old.title, new.title, moves=False,
            )  # fmt: skip
        yield from _deadline(pair, f"The clock {key}", where, old, new)
    for key, old in before.items():
        if key not in after:
            yield Change(
                "clock-removed", "clocks", f"The clock {key} is gone.", deadline_of(old), None,
                moves=pair.deadlines_matter,
            )  # fmt: skip


def _deadline(
    pair: Pair, named: str, where: str, old: ClockPlan, new: ClockPlan
) -> Iterable[Change]:
    was, now = deadline_of(old), deadline_of(new)
    if was != now:
        verb = "must be answered" if new.since == "offered" else "ends"
        yield Change(
            "deadline", f"{where}.within", f"{named} {verb} {now} now, not {was}.", was, now,
            moves=pair.deadlines_matter,
        )  # fmt: skip
    before, after = steps_told(old), steps_told(new)
    if before != after:
        told = listed(after) if after else "no reminder and nobody told"
        yield Change(
            "escalation", where, f"{named}: {told} now.", "; ".join(before) or None,
            "; ".join(after) or None, moves=False,
        )  # fmt: skip
