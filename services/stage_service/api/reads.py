"""The read side over HTTP: leads, timelines, the funnel's numbers. Feeds and streams are in `feed`."""

from __future__ import annotations

import asyncio
import re
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BeforeValidator

from services.contracts.events import normal_email
from services.contracts.problems import Defect
from services.contracts.yaml_source import nearest
from services.stage_service import funnel_numbers, reads, reads_handoffs, reads_people
from services.stage_service.accounts import company_domain
from services.stage_service.api.access import House, allow, house, token_of
from services.stage_service.errors import InvalidRequestError, NotFoundError
from services.stage_service.identities import Policy, keys_of
from services.stage_service.playbook import Playbook
from services.stage_service.whole_leads import whole_lead

NOTIFIER_WITHIN_S = 1.5
ALERTS_OF_LEADS_MAX = 10
"""The notifier is asked once for each lead that was merged into one."""

router = APIRouter(dependencies=[Depends(allow("read"))])
_encode = msgspec.json.Encoder().encode


def _json(body: Any) -> Response:
    return Response(_encode(body), media_type="application/json")


def playbook_named(house: House, name: str | None) -> Playbook:
    """Give the active playbook `name`; without a name, the first. Raises NotFoundError."""
    playbooks = house.playbooks
    if name is None:
        return next(iter(playbooks.values()))
    if name not in playbooks:
        raise NotFoundError(
            f"there is no playbook {name!r}", field="playbook", value=name,
            remedy=nearest(name, playbooks) or f"Known: {', '.join(playbooks)}.",
        )  # fmt: skip
    return playbooks[name]


def required_lead_id(text: str) -> str:
    """Give a lead id in its canonical form. Raises NotFoundError for what cannot be one."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise NotFoundError(
            f"there is no lead {text!r}", field="id", value=text, remedy="Lead ids are UUIDs."
        ) from None


def _stage(playbook: Playbook, key: str | None, field: str, *, on_path: bool = False) -> str | None:
    known = playbook.path if on_path else tuple(playbook.stages)
    if key is not None and key not in known:
        raise InvalidRequestError(
            f"{key!r} is not a stage {'of the path ' if on_path else ''}of {playbook.name!r}",
            field=field, value=key, remedy=nearest(key, known) or f"Stages: {', '.join(known)}.",
        )  # fmt: skip
    return key


@router.get("/v1/leads", tags=["leads"], operation_id="list_leads")
async def list_leads(
    request: Request,
    email: str | None = None,
    stage: str | None = None,
    owner: Annotated[str | None, Query(max_length=64)] = None,
    q: Annotated[str | None, Query(max_length=200)] = None,
    playbook: str | None = None,
    account: Annotated[str | None, Query(max_length=300)] = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=reads.PAGE_MAX)] = 50,
) -> Response:
    """List leads, newest first."""
    it = house(request)
    if stage is not None or playbook is not None:
        _stage(playbook_named(it, playbook), stage, "stage")
    addresses: list[str] = []
    if email is not None:
        read = addresses_of(email, it.lane.policy)
        if isinstance(read, Defect):
            raise InvalidRequestError(read.reason, field="email", value=email, remedy=read.remedy)
        addresses = read
    if cursor is not None:
        cursor = _cursor_id(cursor)
    items, more = await reads.list_leads(
        it.engine, emails=addresses, stage=stage, owner=_text(owner, "owner"), q=_text(q, "q"),
        playbook=playbook, account=account_named(account) if account is not None else None,
        cursor=cursor, limit=limit,
    )  # fmt: skip
    return _json({"items": items, "next_cursor": more})


def addresses_of(email: str, policy: Policy) -> list[str] | Defect:
    """Give the ways in which the address `email` may be an identity here."""
    normal = normal_email(email)
    if isinstance(normal, Defect):
        return normal
    return [value for _, value in keys_of([("email", normal)], {"email": email}, policy)[0]]


def account_named(text: str) -> str:
    """Give the account that the domain or URL `text` belongs to. Raises NotFoundError."""
    account = company_domain(text)
    if account is None:
        raise NotFoundError(
            f"{text!r} is no account: not a domain that a company registered", field="account",
            value=text, remedy="Give a company's domain, as acme.com; mail providers are none.",
        )  # fmt: skip
    return account


@router.get("/v1/accounts", tags=["accounts"], operation_id="list_accounts")
async def list_accounts(
    request: Request,
    cursor: Annotated[str | None, Query(max_length=300)] = None,
    limit: Annotated[int, Query(ge=1, le=reads.PAGE_MAX)] = 50,
) -> Response:
    """List accounts (companies by domain) with the stages of their leads, by domain."""
    items, more = await reads_people.list_accounts(
        house(request).engine, after=_text(cursor, "cursor"), limit=limit
    )
    return _json({"items": items, "next_cursor": more})


@router.get("/v1/accounts/{domain}", tags=["accounts"], operation_id="get_account")
async def get_account(
    request: Request,
    domain: str,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=reads.PAGE_MAX)] = 50,
) -> Response:
    """Give one account with its leads, newest first, and their stages."""
    it = house(request)
    account = account_named(domain)
    found, _ = await reads_people.list_accounts(it.engine, account=account, limit=1)
    if not found:
        raise NotFoundError(f"there is no account {account!r}", field="domain", value=domain)
    items, more = await reads.list_leads(
        it.engine, account=account, cursor=_cursor_id(cursor) if cursor is not None else None,
        limit=limit,
    )  # fmt: skip
    return _json(found[0] | {"items": items, "next_cursor": more})


def _text(value: str | None, field: str) -> str | None:
    if value is not None and "\x00" in value:
        raise InvalidRequestError("contains NUL", field=field, value=value, remedy="Remove it.")
    return value


def _cursor_id(cursor: str) -> str:
    try:
        return str(uuid.UUID(cursor))
    except ValueError:
        raise InvalidRequestError(
            "not a cursor of this list", field="cursor", value=cursor,
            remedy="Take next_cursor as it was given.",
        ) from None  # fmt: skip


@router.get("/v1/leads/{id}", tags=["leads"], operation_id="get_lead")
async def get_lead(request: Request, id: str) -> Response:
    """Give one lead with its journeys."""
    it = house(request)
    lead_id = await living_lead(it, id)
    if lead_id != required_lead_id(id):
        return _moved(f"/v1/leads/{lead_id}", lead_id)
    lead = await whole_lead(it.engine, lead_id)
    if lead is None:
        raise NotFoundError(f"there is no lead {id!r}", field="id", value=id)
    return _json(lead)


async def living_lead(it: House, id: str) -> str:
    """Give the lead that `id` is part of now: itself, unless it was merged. Raises NotFoundError."""
    root = await reads_people.root_of(it.engine, required_lead_id(id))
    if root is None:
        raise NotFoundError(f"there is no lead {id!r}", field="id", value=id)
    return root


def _moved(path: str, lead_id: str) -> Response:
    """Send a reader of a merged lead's id on to the survivor (RFC 9110, 15.4.9).

    Not to be kept: a merge can be undone.
    """
    headers = {"location": path, "cache-control": "no-store"}
    return Response(_encode({"merged_into": lead_id}), 308, headers, media_type="application/json")


@router.get("/v1/leads/{id}/timeline", tags=["leads"], operation_id="get_timeline")
async def get_timeline(request: Request, id: str) -> Response:
    """Give all that happened to a lead, oldest first: events, transitions with why, handoffs, alerts."""
    it = house(request)
    lead_id = await living_lead(it, id)
    if lead_id != required_lead_id(id):
        return _moved(f"/v1/leads/{lead_id}/timeline", lead_id)
    items = await timeline_of(it, lead_id)
    merges = await reads_people.merges_into(it.engine, lead_id)
    items += reads_people.merge_items(merges)
    sides = [lead_id, *(m["lead_id"] for m in reads_people.merged_from(merges, lead_id))]
    alerts = await alerts_of(it, token_of(request), *sides[:ALERTS_OF_LEADS_MAX])
    items += [
        # An alert has a kind of its own, which must not pass for the item's.
        {**a, "kind": "alert", "alert_kind": a.get("kind"),
         "occurred_at": datetime.fromisoformat(a["created_at"]),
         "recorded_at": datetime.fromisoformat(a["created_at"])}
        for a in alerts or ()
    ]  # fmt: skip
    items.sort(key=lambda i: i["occurred_at"])
    return _json({"items": items, "next_cursor": None, "alerts_known": alerts is not None})


async def timeline_of(it: House, lead_id: str) -> list[dict[str, Any]]:
    """Give a lead's events, records, clocks and handoffs as timeline items, oldest first."""
    items = await reads.timeline(it.engine, lead_id)
    items = await reads_handoffs.told_by_clocks(it.engine, items, it.playbooks)
    rows = await reads_handoffs.handoffs_of_lead(it.engine, lead_id)
    items += reads_handoffs.handoff_items(rows, items, it.playbooks, it.team, it.now())
    items.sort(key=lambda i: i["occurred_at"])
    return items


async def alerts_of(house: House, token: str | None, *lead_ids: str) -> list[dict[str, Any]] | None:
    """Ask the notifier for the alerts of a lead and of those merged into it; None: no answer in time."""

    async def ask(lead_id: str) -> list[dict[str, Any]] | None:
        try:
            answer = await house.notifier.get(
                "/v1/alerts", params={"lead_id": lead_id, "limit": "200"},
                headers={"authorization": f"Bearer {token}"}, timeout=NOTIFIER_WITHIN_S,
            )  # fmt: skip
            return answer.json()["items"] if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError, KeyError):
            return None

    found = await asyncio.gather(*(ask(lead_id) for lead_id in lead_ids))
    known = [alerts for alerts in found if alerts is not None]
    return [a for alerts in known for a in alerts] if len(known) == len(found) else None


def no_number(value: Any) -> Any:
    """Let pydantic read a moment, unless it is a number: raises ValueError."""
    # The framework would take 20260101 for a moment in August 1970.
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d", value):
        raise ValueError("give a moment as 2026-01-31T09:30:00Z")
    return value


SinceQuery = Annotated[datetime | None, BeforeValidator(no_number), Query(alias="from")]
UntilQuery = Annotated[datetime | None, BeforeValidator(no_number), Query(alias="to")]
"""From, to: moments of RFC 3339, or dates."""


def moment_in_utc(value: datetime | None, field: str) -> datetime | None:
    """Give `value` in UTC, which is what is meant when it names no offset."""
    if value is None or value.tzinfo is None:
        return value and value.replace(tzinfo=UTC)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidRequestError(
            "lies outside the years 1 to 9999", field=field, value=value.isoformat(),
            remedy="Give a nearer moment, or leave it out.",
        ) from None  # fmt: skip


@router.get("/v1/funnel", tags=["funnel"], operation_id="get_funnel")
async def get_funnel(
    request: Request,
    playbook: str | None = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
    by: Annotated[str | None, Query(max_length=64, pattern=r"^[A-Za-z0-9_.:-]+$")] = None,
    from_stage: str | None = None,
    to_stage: str | None = None,
) -> Response:
    """Give the funnel: reached, current, converted, rate, times; by an attribute; or for a stage pair."""
    if from_stage is not None or to_stage is not None:
        return await get_durations(
            request, from_stage or "", to_stage or "", playbook, since, until
        )
    it = house(request)
    numbers = await funnel_numbers.funnel(
        it.engine,
        playbook_named(it, playbook),
        since=moment_in_utc(since, "from"),
        until=moment_in_utc(until, "to"),
        by=by,
    )
    return _json(numbers)


@router.get("/v1/funnel/durations", tags=["funnel"], operation_id="get_durations")
async def get_durations(
    request: Request,
    from_stage: str,
    to_stage: str,
    playbook: str | None = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
) -> Response:
    """Give count, median and p90 of the time from reaching one stage of the path to reaching another."""
    it = house(request)
    chosen = playbook_named(it, playbook)
    _stage(chosen, from_stage, "from_stage", on_path=True)
    _stage(chosen, to_stage, "to_stage", on_path=True)
    return _json(
        await funnel_numbers.durations(
            it.engine,
            chosen,
            from_stage,
            to_stage,
            since=moment_in_utc(since, "from"),
            until=moment_in_utc(until, "to"),
        )
    )
