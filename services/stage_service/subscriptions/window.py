"""Which deliveries of one subscription may go out now, and how far its cursor may move. Pure.

The log is read into a window that holds no more than so many messages and bytes. A delivery in it is

    ready -> sending -> done                                         it went through, or is given up
                     -> due again: it gets a row, which keeps it; so do those behind it in the window
    behind (an earlier one of its lead is ready, sending, or in the window behind another) -> ready

and one whose lead has a row that is not done gets a row at once, which waits. The cursor is the last position
before the first message in the window: each one up to it was delivered, is for others, or has a row. Rows
that are due come back by `take_row`. Unordered subscriptions have no leads to wait for: nothing is behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from services.contracts.events import Message

MESSAGES_MAX = 256
BYTES_MAX = 1_000_000
OPEN_LEADS_MAX = 10_000
"""With so many leads waiting for an earlier delivery the log is not read on: it keeps what comes."""


@dataclass(slots=True, eq=False)
class Delivery:
    """One message on its way to one subscription.

    `id` is its row's; `exists`: the row is in the database already. `tries` counts the attempts that count
    for the schedule, `attempts` are those made here and not recorded yet, as people read them.
    """

    id: str
    message: Message
    position: int | None
    lead: str
    run: int
    exists: bool = False
    tries: int = 0
    attempts: list[dict[str, Any]] = field(default_factory=list)
    attempted: int = 0
    """Attempts ever begun, those that do not count too."""
    created_at: datetime | None = None
    """When it was first tried, or got its row."""
    published_at: datetime | None = None


class Window:
    """The state of one subscription's deliveries in this process."""

    def __init__(
        self, cursor: int, *, ordered: bool, recorded: Iterable[int] = (), leads: Iterable[str] = ()
    ) -> None:
        """Begin after `cursor`.

        `recorded` are positions after it that have a row already, `leads` those with a row that is not done.
        """
        self.head = cursor
        """The last position that was read."""
        self.ordered = ordered
        self.blocked: set[str] = set(leads)
        """Leads with a row that is not done."""
        self.rows: dict[str, Delivery] = {}
        """What came from rows and is here, by id."""
        self.sending: set[Delivery] = set()
        self._recorded = set(recorded)
        self._log: dict[int, Delivery] = {}
        self._log_bytes = 0
        self._ready: deque[Delivery] = deque()
        self._ready_rows: deque[Delivery] = deque()
        self._behind: dict[str, deque[Delivery]] = {}
        """By lead, for each lead that has one ready or sending."""
        self._last_was_row = False

    def __len__(self) -> int:
        return len(self._log)

    @property
    def cursor(self) -> int:
        """The position up to which nothing of the log is in here only."""
        return next(iter(self._log)) - 1 if self._log else self.head

    @property
    def oldest(self) -> Delivery | None:
        """The first delivery of the log that is here only."""
        return next(iter(self._log.values()), None)

    @property
    def takes_more(self) -> bool:
        """Whether the log may be read on."""
        return (
            len(self._log) < MESSAGES_MAX
            and self._log_bytes < BYTES_MAX
            and len(self.blocked) < OPEN_LEADS_MAX
        )

    @property
    def can_send(self) -> bool:
        """Whether something is ready."""
        return bool(self._ready or self._ready_rows)

    @property
    def is_stuck(self) -> bool:
        """Whether the window is full of what waits for others, while nothing in it is ready."""
        return (
            not self._ready
            and bool(self._log)
            and (len(self._log) >= MESSAGES_MAX or self._log_bytes >= BYTES_MAX)
        )

    @property
    def wants_rows(self) -> int:
        """How many rows that are due may come."""
        return max(0, MESSAGES_MAX // 4 - len(self.rows)) // 2

    def pass_over(self, position: int) -> None:
        """Note that nothing up to `position` is for this subscription, but for what was added."""
        if position > self.head:
            self.head = position
            if self._recorded:
                self._recorded = {p for p in self._recorded if p > position}

    def add(self, delivery: Delivery) -> Delivery | None:
        """Take the next message of the log; gives it back when it has to get a row that waits."""
        position = delivery.position
        assert position is not None and position > self.head  # noqa: S101, PT018
        self.head = position
        if position in self._recorded:
            self._recorded.discard(position)
            return None
        if self.ordered and delivery.lead in self.blocked:
            return delivery
        self._log[position] = delivery
        self._log_bytes += len(delivery.message.value)
        self._line_up(delivery, self._ready)
        return None

    def take_row(self, delivery: Delivery) -> None:
        """Take a row that is due."""
        if delivery.id not in self.rows:
            self.rows[delivery.id] = delivery
            self._block(delivery)
            self._line_up(delivery, self._ready_rows)

    def _line_up(self, delivery: Delivery, ready: deque[Delivery]) -> None:
        if self.ordered:
            behind = self._behind.get(delivery.lead)
            if behind is not None:
                behind.append(delivery)
                return
            self._behind[delivery.lead] = deque()
        ready.append(delivery)

    def next(self) -> Delivery | None:
        """Take what is to be sent next: rows and the log in turn, so that neither starves the other."""
        first, second = self._ready_rows, self._ready
        if self._last_was_row:
            first, second = second, first
        source = first or second
        if not source:
            return None
        self._last_was_row = source is self._ready_rows
        delivery = source.popleft()
        self.sending.add(delivery)
        return delivery

    def done(self, delivery: Delivery) -> None:
        """Note that `delivery` went through or is given up: the next of its lead is ready."""
        self._leave(delivery)
        behind = self._behind.get(delivery.lead) if self.ordered else None
        if behind is None:
            return
        if behind:
            following = behind.popleft()
            (self._ready_rows if self._is_row(following) else self._ready).append(following)
        else:
            del self._behind[delivery.lead]

    def again(self, delivery: Delivery) -> list[Delivery]:
        """Note that `delivery` is due again later; gives those of the log behind it: they get rows."""
        self._leave(delivery)
        self._block(delivery)
        if not self.ordered:
            return []
        followers: list[Delivery] = []
        for each in self._behind.pop(delivery.lead, ()):
            if self._is_row(each):
                del self.rows[each.id]  # its row brings it back
            else:
                self._forget(each)
                followers.append(each)
        return followers

    def unblock(self, lead: str) -> None:
        """Note that no row of `lead` is open any more."""
        if not any(row.lead == lead for row in self.rows.values()):
            self.blocked.discard(lead)

    def spill(self) -> tuple[list[Delivery], list[Delivery]]:
        """Give (those of the log that are being sent, those behind them): rows keep them from now on."""
        sending = [d for d in self._log.values() if d in self.sending]
        behind: list[Delivery] = []
        for lead, line in self._behind.items():
            mine = [d for d in line if not self._is_row(d)]
            if mine:
                self._behind[lead] = deque(d for d in line if self._is_row(d))
                behind += mine
        for each in (*sending, *behind):
            self._forget(each)
            self._block(each)
        self.rows.update((d.id, d) for d in sending)
        return sending, behind

    def drop(self, unwanted: Callable[[Delivery], bool]) -> None:
        """Forget what of the log is not sent yet and `unwanted` now."""
        for each in [d for d in self._unsent() if unwanted(d)]:
            self._forget(each)
            behind = self._behind.get(each.lead)
            if behind is not None and each in behind:
                behind.remove(each)
            else:
                self._ready.remove(each)
                self.done(each)

    def _unsent(self) -> Iterator[Delivery]:
        return (d for d in self._log.values() if d not in self.sending)

    def _is_row(self, delivery: Delivery) -> bool:
        return delivery.id in self.rows

    def _block(self, delivery: Delivery) -> None:
        # A test event is in no order.
        if self.ordered and delivery.position is not None:
            self.blocked.add(delivery.lead)

    def _leave(self, delivery: Delivery) -> None:
        self.sending.discard(delivery)
        self.rows.pop(delivery.id, None)
        self._forget(delivery)

    def _forget(self, delivery: Delivery) -> None:
        if delivery.position is not None and self._log.get(delivery.position) is delivery:
            del self._log[delivery.position]
            self._log_bytes -= len(delivery.message.value)
