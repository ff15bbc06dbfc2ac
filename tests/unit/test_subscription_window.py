"""Order in each lead, and a cursor that never passes what could be lost: against any history."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts.events import Message
from services.stage_service.subscriptions import window as module
from services.stage_service.subscriptions.window import MESSAGES_MAX, Delivery, Window


def delivery(position: int, lead: str) -> Delivery:
    """A delivery of the log's message at `position`."""
    message = Message("t", lead, {"ce_id": f"e{position}"}, b"{}", position)
    return Delivery(str(uuid.UUID(int=position)), message, position, lead, 0)


@dataclass
class Place:
    """What the database keeps, and one process after another that works on it; crashes lose the process."""

    log: list[str]
    ordered: bool
    chance: random.Random
    cursor: int = 0
    rows: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Position to (state, lead)."""
    taken: list[int] = field(default_factory=list)
    """What the subscriber got, in order."""
    pending: dict[int, tuple[str, str]] = field(default_factory=dict)
    window: Window = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start a process from what is recorded."""
        self.pending = {}
        open_rows = {
            p: lead for p, (state, lead) in self.rows.items() if state in ("waiting", "due")
        }
        self.window = Window(
            self.cursor, ordered=self.ordered, recorded=[p for p in self.rows if p > self.cursor],
            leads=open_rows.values() if self.ordered else (),
        )  # fmt: skip
        self.promote(set(open_rows.values()))

    def read(self) -> None:
        """Read one message of the log."""
        window = self.window
        if window.head < len(self.log) and window.takes_more:
            position = window.head + 1
            lead = self.log[position - 1]
            if lead == "other":
                window.pass_over(position)
            elif (waits := window.add(delivery(position, lead))) is not None:
                self.pending[position] = ("waiting", waits.lead)

    def send(self) -> None:
        """Begin an attempt."""
        if len(self.window.sending) < 4:
            self.window.next()

    def end(self, fails: float) -> None:
        """End an attempt: it fails with probability `fails`; what failed may still have got there."""
        if not self.window.sending:
            return
        each = self.chance.choice(sorted(self.window.sending, key=lambda d: d.position or 0))
        position = each.position or 0
        if self.chance.random() >= fails:
            self.taken.append(position)
            self.window.done(each)
            self.pending[position] = ("delivered", each.lead)
        else:
            if self.chance.random() < 0.3:
                self.taken.append(position)  # the answer was lost, not the event
            followers = self.window.again(each)
            self.pending[position] = ("due", each.lead)
            for follower in followers:
                self.pending[follower.position or 0] = ("waiting", follower.lead)

    def record(self) -> None:
        """Write what there is, and the cursor, as one."""
        touched = {lead for _, lead in self.pending.values()}
        blocked = set(self.window.blocked)
        self.rows.update(self.pending)
        self.pending = {}
        self.cursor = max(self.cursor, self.window.cursor)
        if self.ordered:
            self.promote(touched & blocked)

    def promote(self, leads: set[str]) -> None:
        """Make the first open row of each lead due."""
        for lead in leads:
            mine = sorted(
                p for p, (s, of) in self.rows.items() if of == lead and s in ("waiting", "due")
            )
            if mine:
                self.rows[mine[0]] = ("due", lead)
            elif not any(of == lead and s != "delivered" for s, of in self.pending.values()):
                self.window.unblock(lead)

    def load(self) -> None:
        """Bring rows that are due."""
        for position, (state, lead) in sorted(self.rows.items()):
            each = delivery(position, lead)
            earlier = self.ordered and any(
                of == lead and s in ("waiting", "due") and p < position
                for p, (s, of) in self.rows.items()
            )
            if (
                state == "due"
                and not earlier
                and position not in self.pending
                and self.window.wants_rows
            ):
                self.window.take_row(each)
                behind = sorted(
                    p for p, (s, of) in self.rows.items()
                    if self.ordered and of == lead and s == "waiting" and p > position
                    and p not in self.pending
                )  # fmt: skip
                for follower in behind[: self.chance.randrange(4)]:
                    self.window.take_row(delivery(follower, lead))

    def spill(self) -> None:
        """Give what is under way rows."""
        sending, behind = self.window.spill()
        self.pending.update({d.position or 0: ("due", d.lead) for d in sending})
        self.pending.update({d.position or 0: ("waiting", d.lead) for d in behind})

    def check(self) -> None:
        """Everything up to the cursor is delivered, for others, or has a row."""
        got = set(self.taken)
        for position in range(1, self.cursor + 1):
            lead = self.log[position - 1]
            assert lead == "other" or position in self.rows or position in got
        if self.ordered:
            first: dict[str, int] = {}
            for position in dict.fromkeys(self.taken):
                lead = self.log[position - 1]
                assert first.get(lead, 0) < position, f"{lead}: {position} after {first[lead]}"
                first[lead] = position


STEPS = ("read", "read", "read", "send", "send", "end", "end", "record", "load", "spill", "crash")


@pytest.mark.parametrize("ordered", [True, False])
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c", "other"]), max_size=40),
    st.lists(st.sampled_from(STEPS), max_size=300),
    st.floats(0, 0.9),
    st.integers(0, 2**32),
)
def test_nothing_is_lost_and_no_lead_is_out_of_order(
    ordered: bool, log: list[str], steps: list[str], fails: float, seed: int
) -> None:
    """Whatever fails and whenever the process dies; afterwards, in peace, everything arrives."""
    it = Place(log, ordered, random.Random(seed))
    for step in steps:
        if step == "end":
            it.end(fails)
        elif step == "crash":
            it.begin()
        else:
            getattr(it, step)()
        it.check()
    for _ in range(len(log) + 10):
        for step in ("read", "send", "record", "load", "send"):
            getattr(it, step)()
        it.end(0.0)
        it.record()
        it.check()
        if it.cursor == len(log) and all(s == "delivered" for s, _ in it.rows.values()):
            break
    wanted = {n for n, lead in enumerate(log, 1) if lead != "other"}
    for _ in range(3 * len(log) + 10):
        if set(it.taken) >= wanted:
            break
        for step in ("load", "send", "record"):
            getattr(it, step)()
        it.end(0.0)
    it.check()
    assert set(it.taken) >= wanted


def test_the_window_is_bounded_and_a_hot_lead_cannot_fill_it_for_ever() -> None:
    """One lead has more to come than fits: it gets rows, and the others go on."""
    window = Window(0, ordered=True)
    for position in range(1, MESSAGES_MAX + 1):
        assert window.takes_more
        window.add(delivery(position, "hot"))
    assert not window.takes_more
    first = window.next()
    assert first is not None
    assert window.is_stuck
    sending, behind = window.spill()
    assert sending == [first]
    assert len(behind) == MESSAGES_MAX - 1
    assert window.cursor == MESSAGES_MAX
    window.add(delivery(MESSAGES_MAX + 1, "cool"))
    following = window.next()
    assert following is not None
    assert following.lead == "cool"


def test_bytes_bound_the_window_too() -> None:
    window = Window(0, ordered=True)
    big = b"x" * (module.BYTES_MAX // 2 + 1)
    for position in (1, 2):
        window.add(
            Delivery(
                f"d{position}", Message("t", "k", {"ce_id": "e"}, big, position), position, "k", 0
            )
        )
    assert not window.takes_more


def test_rows_and_the_log_take_turns() -> None:
    """Neither a backlog of retries nor the new events starve the other."""
    window = Window(0, ordered=True)
    for position in range(1, 7):
        window.add(delivery(position + 100, f"n{position}"))
        window.take_row(delivery(position, f"r{position}"))
    order = [window.next() for _ in range(12)]
    kinds = ["row" if d and d.lead.startswith("r") else "log" for d in order]
    assert kinds == ["row", "log"] * 6


def test_a_changed_filter_drops_what_is_not_sent_yet() -> None:
    window = Window(0, ordered=True)
    for position, lead in enumerate(["a", "a", "a", "b"], 1):
        window.add(delivery(position, lead))
    sent = window.next()
    window.drop(lambda d: d.position in (2, 4))
    assert sent is not None
    window.done(sent)
    following = window.next()
    assert following is not None
    assert following.position == 3
    window.done(following)
    assert window.next() is None
    assert window.cursor == 4
