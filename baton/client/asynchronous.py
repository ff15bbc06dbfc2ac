"""`AsyncClient`: Baton for asyncio; what `Client` is, to be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import httpx

from baton.client.calls import (
    Call,
    Trying,
    batches,
    is_temporary,
    read_answer,
    read_first_lead,
    read_lead,
    read_results,
)
from baton.client.errors import AnswerError, UnreachableError
from baton.client.place import Place
from baton.client.records import Event, FeedItem, Lead, Result


class AsyncClient:
    """Talks to the stage service at `url` with the API `key`; close it, or use it as a context manager.

    What fails for the moment (no connection, 5xx, 429) is tried again with growing pauses, for `give_up_s`
    seconds of waiting altogether; then `UnreachableError` is raised. `timeout_s` bounds one request. One
    client may be shared by tasks.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        give_up_s: float | None = 60.0,
        timeout_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._give_up_s = give_up_s
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {key}"}, transport=transport,
            follow_redirects=True,
        )  # fmt: skip

    async def send(self, event: Event | Mapping[str, Any]) -> Result:
        """Send one event, and give what became of it once it is committed.

        A CloudEvent as a mapping will do too. Raises RefusedError when Baton refuses the request itself; an
        event that is not valid is a `Result` that is ``rejected``.
        """
        return (await self.send_many([event]))[0]

    async def send_many(self, events: Iterable[Event | Mapping[str, Any]]) -> list[Result]:
        """Send events in order, in as many requests as it takes; gives a result for each.

        When it raises, some may have been taken: send all again, with the same ids, and these are duplicates.
        """
        results: list[Result] = []
        for call in batches(events):
            results += read_results(*await self._ask(call, self._give_up_s))
        return results

    async def lead(self, id: str) -> Lead:
        """Give a lead; that of a merged lead's id is the survivor. Raises RefusedError (404) for none."""
        return read_lead(*await self._ask(Call("GET", f"/v1/leads/{id}"), self._give_up_s))

    async def lead_by_email(self, email: str) -> Lead | None:
        """Give the lead whose address it is; None when nobody has it."""
        call = Call("GET", "/v1/leads", (("email", email), ("limit", "1")))
        return read_first_lead(*await self._ask(call, self._give_up_s))

    def transitions(
        self,
        after: int = 0,
        *,
        since: datetime | None = None,
        follow: bool = False,
        types: Sequence[str] = (),
        playbook: str | None = None,
        key: str | None = None,
        stage: str | None = None,
        from_stage: str | None = None,
        lead_id: str | None = None,
        owner: str | None = None,
        role: str | None = None,
    ) -> AsyncFeed:
        """Read the feed of transitions after the position `after`, or from the moment `since`.

        Ends where the feed ends; with `follow` it never does: it waits for what comes, and outlives
        outages of any length. `types` may end with ``*``.
        """
        filters = {
            "playbook": playbook, "key": key, "stage": stage, "from": from_stage, "lead_id": lead_id,
            "owner": owner, "role": role,
        }  # fmt: skip
        return self._feed("/v1/transitions", after, since, follow, types, filters)

    def handoffs(
        self,
        after: int = 0,
        *,
        since: datetime | None = None,
        follow: bool = False,
        types: Sequence[str] = (),
        playbook: str | None = None,
        key: str | None = None,
        stage: str | None = None,
        lead_id: str | None = None,
        owner: str | None = None,
        role: str | None = None,
    ) -> AsyncFeed:
        """Read the feed of handoffs, clocks and changes of owners, as `transitions`.

        Its positions are its own.
        """
        filters = {
            "playbook": playbook, "key": key, "stage": stage, "lead_id": lead_id, "owner": owner,
            "role": role,
        }  # fmt: skip
        return self._feed("/v1/handoffs/feed", after, since, follow, types, filters)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    def _feed(
        self, path: str, after: int, since: datetime | None, follow: bool, types: Sequence[str],
        filters: dict[str, str | None],
    ) -> AsyncFeed:  # fmt: skip
        place = Place(path, after=after, since=since, follow=follow, types=types, filters=filters)
        give_up_s = None if follow else self._give_up_s
        return AsyncFeed(place, lambda call: self._ask(call, give_up_s))

    async def _ask(self, call: Call, give_up_s: float | None) -> tuple[int, bytes]:
        """Ask until there is an answer that stays; raises UnreachableError."""
        trying = Trying(give_up_s)
        while True:
            retry_after = None
            try:
                answer = await self._http.request(
                    call.method, call.path, params=list(call.params), content=call.content,
                    headers=dict(call.headers), timeout=self._timeout_s + call.wait_s,
                )  # fmt: skip
            except httpx.TransportError as error:
                why = type(error).__name__
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise AnswerError(f"the request cannot be made: {type(error).__name__}") from None
            else:
                if not is_temporary(answer.status_code):
                    return answer.status_code, answer.content
                why, retry_after = (
                    f"answered {answer.status_code}", answer.headers.get("retry-after"),
                )  # fmt: skip
            pause = trying.pause_s(why, retry_after)
            if pause is None:
                raise UnreachableError(f"Baton cannot be reached at present: {why}")
            await self._sleep(pause)


class AsyncFeed(AsyncIterator[FeedItem]):
    """Items of a feed, in order, each position once.

    `cursor` is the position to go on after: keep it with what you did, and begin there the next time.
    """

    def __init__(self, place: Place, ask: Callable[[Call], Awaitable[tuple[int, bytes]]]) -> None:
        self._place = place
        self._ask = ask

    @property
    def cursor(self) -> int:
        """Give the position up to which everything was done; it also moves past what filters leave out."""
        return self._place.cursor

    async def __anext__(self) -> FeedItem:
        """Give the next item; what was given before counts as done."""
        while True:
            item = self._place.take_next()
            if item is not None:
                return item
            if self._place.is_at_end:
                raise StopAsyncIteration
            self._place.take_page(read_answer(*await self._ask(self._place.call())))
