"""A reader's place in a feed, without any I/O: which page to ask for, what it brought, how far one is."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

from baton.client.calls import Call
from baton.client.errors import AnswerError
from baton.client.records import FeedItem, Object, objects

WAIT_S = 25.0
"""Less than the 30 s after which many proxies hang up; Baton allows 60."""
PAGE = 500


class Place:
    """Where a reader stands in the feed at `path`.

    `cursor` is safe to keep: everything up to it was given out and its successor asked for, or left out by
    the filters.
    """

    def __init__(
        self,
        path: str,
        *,
        after: int,
        since: datetime | None,
        follow: bool,
        types: Sequence[str],
        filters: dict[str, str | None],
    ) -> None:
        if since is not None and since.tzinfo is None:
            raise ValueError("since has no offset: give an aware datetime")
        self.cursor = after
        self._path = path
        self._since = since
        self._follow = follow
        self._chosen = [("type", type) for type in types]
        self._chosen += [(name, value) for name, value in filters.items() if value is not None]
        self._items: deque[FeedItem] = deque()
        self._looked_to = after
        self._given: int | None = None
        self.is_at_end = False

    def take_next(self) -> FeedItem | None:
        """Give the next item at hand; None: another page is needed, or, `is_at_end`, there is none."""
        if self._given is not None:
            self.cursor, self._given = self._given, None
        if not self._items:
            self.cursor = self._looked_to
            return None
        item = self._items.popleft()
        self._given = item.position
        return item

    def call(self) -> Call:
        """Give the request for the next page."""
        start = ("after", str(self._looked_to))
        if self._since is not None:
            start = ("since", self._since.astimezone(UTC).isoformat())
        wait = WAIT_S if self._follow else 0.0
        asked = (start, ("limit", str(PAGE)), ("wait", f"{wait:g}"), *self._chosen)
        return Call("GET", self._path, asked, wait_s=wait)

    def take_page(self, page: Object) -> None:
        """Take what the request brought; raises AnswerError when it is no page, or goes backwards."""
        try:
            items = [FeedItem.of(item) for item in objects(page.get("items"))]
            told = page["next_cursor"]
            cursor = self._looked_to if told is None else int(told)
        except (KeyError, TypeError, ValueError):
            raise AnswerError("what was answered is no page of a feed") from None
        positions = [self._looked_to, *(item.position for item in items)]
        if positions != sorted(set(positions)) or cursor < positions[-1]:
            raise AnswerError("the feed goes backwards: it is another one than before")
        if self._since is not None and told is not None:
            self._since = None
        self._items.extend(items)
        self._looked_to = cursor
        self.is_at_end = told is None and not items and not self._follow
