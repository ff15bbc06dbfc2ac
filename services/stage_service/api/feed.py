"""The feeds over HTTP: what is published, in order, from any position on: pages, long poll, SSE, NDJSON.

A position is for ever: ``after`` the last one that was done gives what follows, without gap or repeat. There
is a feed of transitions and one of handoffs, each with positions of its own. Filters leave out what
does not match and move the cursor past it.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BeforeValidator

from services.contracts.access import Principal
from services.contracts.events import HANDOFFS_TOPIC, TRANSITIONS_TOPIC
from services.contracts.yaml_source import nearest
from services.stage_service.api.access import House, allow, house, token_of
from services.stage_service.api.feed_description import described
from services.stage_service.api.following import EventStream, Lines
from services.stage_service.api.moments import moment_in_utc, no_number
from services.stage_service.errors import CursorAheadError, InvalidRequestError
from services.stage_service.feed import TYPES, Feed, Page, Selection, is_of

PAGE_MAX = 1000
WAIT_S_MAX = 60
NDJSON = "application/x-ndjson"
POSITION_MAX = 2**62
_WORD = re.compile(r"[^\x00-\x1f\x7f]{1,128}")

router = APIRouter(dependencies=[Depends(allow("read"))])

After = Annotated[
    int | None,
    Query(ge=0, le=POSITION_MAX, description="the last position you have done; 0: from the start"),
]
Since = Annotated[
    datetime | None,
    BeforeValidator(no_number),
    Query(description="instead of `after`: what was published at this moment or later (RFC 3339)"),
]
Through = Annotated[
    int | None, Query(ge=0, le=POSITION_MAX, description="the last position you want")
]
Until = Annotated[
    datetime | None,
    BeforeValidator(no_number),
    Query(description="what was published before this moment"),
]
Word = Annotated[str | None, Query(max_length=128)]


def selection_of(topic: str) -> Callable[..., Selection]:
    """Make the FastAPI dependency that reads the filters of the feed of `topic`."""

    def of_all(
        type: Annotated[
            list[str] | None,
            Query(description="types of events; may be repeated, and end with `*`"),
        ] = None,
        playbook: Annotated[Word, Query(description="of the journey")] = None,
        key: Annotated[Word, Query(description="of the journey: `main`, or the deal's")] = None,
        stage: Annotated[
            Word, Query(description="the stage that was entered, or it is about")
        ] = None,
        lead_id: Annotated[str | None, Query(description="one lead")] = None,
        owner: Annotated[Word, Query(description="id of the person whose it is now")] = None,
        role: Annotated[Word, Query(description="the role whose it is now")] = None,
    ) -> Selection:
        facts = {
            "playbook": playbook, "key": key, "stage": stage, "lead_id": _lead_id(lead_id),
            "owner": owner, "role": role,
        }  # fmt: skip
        return _selection(topic, type or [], facts)

    shared = Depends(of_all)  # by value: an annotation here cannot name what is local

    def of_moves(
        wanted: Selection = shared,
        to: Annotated[Word, Query(description="the same as `stage`")] = None,
        from_: Annotated[Word, Query(alias="from", description="the stage that was left")] = None,
    ) -> Selection:
        known = dict(wanted.facts)
        if to is not None and known.get("stage", to) != to:
            raise InvalidRequestError(
                "'to' and 'stage' are the same filter, and differ", field="to", value=to,
                remedy="Give one of the two.",
            )  # fmt: skip
        more = _selection(topic, [], {"stage": to, "from": from_})
        return Selection(wanted.types, known | more.facts)

    return of_moves if topic == TRANSITIONS_TOPIC else of_all


def _selection(topic: str, types: list[str], facts: dict[str, str | None]) -> Selection:
    known = TYPES[topic]
    for wanted in types:
        if not any(is_of(type, wanted) for type in known):
            raise InvalidRequestError(
                f"no event of this feed has the type {wanted!r}", field="type", value=wanted,
                remedy=nearest(wanted, known) or f"Types: {', '.join(known)}.",
            )  # fmt: skip
    for name, value in facts.items():
        if value is not None and not _WORD.fullmatch(value):
            raise InvalidRequestError(
                "is empty, or contains a control character", field=name, value=value,
                remedy="Leave it out, or clean it.",
            )  # fmt: skip
    return Selection(tuple(types), {n: v for n, v in facts.items() if v is not None})


def _lead_id(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidRequestError(
            f"{text[:80]!r} is no lead id",
            field="lead_id",
            value=text,
            remedy="Lead ids are UUIDs.",
        ) from None


async def _start(feed: Feed, after: int | None, since: datetime | None, default: int | None) -> int:
    """Give the position after which the reader begins; raises InvalidRequestError or CursorAheadError."""
    if after is not None and since is not None:
        raise InvalidRequestError(
            "'after' and 'since' both say where to begin", field="since", value=since.isoformat(),
            remedy="Give one of the two.",
        )  # fmt: skip
    if since is not None:
        return await feed.position_before(cast("datetime", moment_in_utc(since, "since")))
    if after is None and default is not None:
        return default
    last = await feed.last()
    if after is None:
        return last
    _refuse_ahead(after, last)
    return after


def _refuse_ahead(after: int, last: int) -> None:
    if after > last:
        raise CursorAheadError(
            f"position {after} lies ahead of the end of the feed, which is {last}",
            field="after", value=after, extra={"last_position": last},
            remedy="It is of another feed or installation, or this one was restored from a backup:"
            " take the position from your records, or begin at 0.",
        )  # fmt: skip


async def _end(feed: Feed, through: int | None, until: datetime | None) -> int | None:
    """Give the last position wanted; None: no end was named."""
    ends = [] if through is None else [through]
    if until is not None:
        ends.append(await feed.position_before(cast("datetime", moment_in_utc(until, "until"))))
    return min(ends, default=None)


async def _page(
    request: Request, feed: Feed, wanted: Selection, after: int | None, since: datetime | None,
    through: int | None, until: datetime | None, limit: int, wait_s: float,
) -> Response:  # fmt: skip
    """Answer one page: `entries` that match and the cursor, which lies behind all that was looked at."""
    it = house(request)
    start = await _start(feed, after, since, default=0)
    end = await _end(feed, through, until)
    place = it.following.seat(_who(request)) if wait_s else contextlib.nullcontext()
    with place:
        page = await it.following.first_page(request, feed, start, wanted, limit, end, wait_s)
    if page.position == start and page.at_end:
        _refuse_ahead(start, await feed.last())
    return Response(_body(page, start, known=since is not None), media_type="application/json")


def _body(page: Page, start: int, *, known: bool) -> bytes:
    """Write the page; who began at a moment is told the position of it also when nothing is new."""
    cursor = b"null" if page.position == start and not known else b'"%d"' % page.position
    return b'{"items":[%s],"next_cursor":%s}' % (b",".join(e.item for e in page.entries), cursor)


async def _lines(
    request: Request, feed: Feed, wanted: Selection, after: int | None, since: datetime | None,
    through: int | None, until: datetime | None,
) -> Response:  # fmt: skip
    """Answer all there is at this moment as NDJSON."""
    it = house(request)
    start = await _start(feed, after, since, default=0)
    last = await feed.last()
    _refuse_ahead(start, last)
    end = await _end(feed, through, until)
    end = last if end is None else min(end, last)
    seat = it.following.seat(_who(request))
    body = it.following.lines(feed, start, end, wanted, token_of(request))
    seat.__enter__()
    return Lines(body, seat, it.following.stall_s, max(start, end))


async def _stream(
    request: Request, feed: Feed, wanted: Selection, after: int | None, since: datetime | None,
    last_event_id: str | None,
) -> Response:  # fmt: skip
    """Answer the stream; ``Last-Event-ID`` counts more than what the address says: it is newer."""
    it = house(request)
    if last_event_id:
        if not re.fullmatch(r"[0-9]{1,18}", last_event_id):
            raise InvalidRequestError(
                "not a position of this stream", field="last-event-id", value=last_event_id,
                remedy="Send the id of the last event as it was given, or 'after'.",
            )  # fmt: skip
        after, since = int(last_event_id), None
    start = await _start(feed, after, since, default=None)
    seat = it.following.seat(_who(request))
    body = it.following.events(feed, start, wanted, token_of(request))
    seat.__enter__()
    return EventStream(body, seat, it.following.stall_s)


def _who(request: Request) -> str:
    """Give the id of the key that `allow` found."""
    return cast("Principal", request.state.who).id


def _feed(it: House, topic: str) -> Feed:
    return it.following.feeds[topic]


def _add_feed(topic: str, path: str, names: tuple[str, str, str], tag: str, what: str) -> None:
    """Add the routes of one feed: its pages at `path`, the stream and the export below it."""
    chosen = Depends(selection_of(topic))

    async def read_page(
        request: Request,
        wanted: Selection = chosen,
        after: After = None,
        since: Since = None,
        through: Through = None,
        until: Until = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX, description="items of a page")] = 100,
        wait: Annotated[
            float,
            Query(
                ge=0, le=WAIT_S_MAX, description="seconds to wait for an item when there is none"
            ),
        ] = 0,
        accept: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> Response:
        feed = _feed(house(request), topic)
        if accept is not None and NDJSON in accept.lower():
            return await _lines(request, feed, wanted, after, since, through, until)
        return await _page(request, feed, wanted, after, since, through, until, limit, wait)

    async def read_export(
        request: Request,
        wanted: Selection = chosen,
        after: After = None,
        since: Since = None,
        through: Through = None,
        until: Until = None,
    ) -> Response:
        feed = _feed(house(request), topic)
        return await _lines(request, feed, wanted, after, since, through, until)

    async def read_stream(
        request: Request,
        wanted: Selection = chosen,
        after: After = None,
        since: Since = None,
        last_event_id: Annotated[
            str | None, Header(description="the last position received; counts more than `after`")
        ] = None,
    ) -> Response:
        feed = _feed(house(request), topic)
        return await _stream(request, feed, wanted, after, since, last_event_id)

    for route, name, ending in (
        (read_page, names[0], ""), (read_stream, names[1], "/stream"),
        (read_export, names[2], "/export"),
    ):  # fmt: skip
        router.add_api_route(
            path + ending, route, methods=["GET"], tags=[tag], operation_id=name,
            response_class=Response, **described(ending, topic, what),
        )  # fmt: skip


_add_feed(
    TRANSITIONS_TOPIC, "/v1/transitions",
    ("list_transitions", "stream_transitions", "export_transitions"), "transitions",
    "transitions, corrections and merges",
)  # fmt: skip
_add_feed(
    HANDOFFS_TOPIC, "/v1/handoffs/feed",
    ("list_handoff_events", "stream_handoff_events", "export_handoff_events"), "handoffs",
    "handoffs, clocks and changes of owners",
)  # fmt: skip
