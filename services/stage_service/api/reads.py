"""The read side over HTTP: leads, timelines, the funnel's numbers. Feeds and streams are in `feed`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from services.contracts.events import normal_email
from services.contracts.problems import Defect
from services.contracts.yaml_source import nearest
from services.stage_service import funnel_numbers, reads, reads_people
from services.stage_service.accounts import company_domain
from services.stage_service.api import past
from services.stage_service.api.access import House, allow, house
from services.stage_service.api.moments import SinceQuery, UntilQuery, moment_in_utc
from services.stage_service.as_of import shown_at
from services.stage_service.errors import InvalidRequestError, NotFoundError
from services.stage_service.identities import Policy, keys_of
from services.stage_service.playbook import Playbook
from services.stage_service.stage_names import as_now
from services.stage_service.whole_leads import whole_lead

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
            field=field, value=key,
            remedy=_called_now(playbook, key, known) or nearest(key, known)
            or f"Stages: {', '.join(known)}.",
        )  # fmt: skip
    return key


def _called_now(playbook: Playbook, key: str, known: Sequence[str]) -> str:
    now = playbook.named(key)
    return f"It is {now!r} now." if now in known else ""


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
    at: past.AtQuery = None,
) -> Response:
    """List leads, newest first; of the past there is no list."""
    it = house(request)
    if at is not None:
        raise InvalidRequestError(
            "the list of leads is of now only", field="at", value=at.isoformat(),
            remedy="Ask for one lead or for the funnel at a past moment: /v1/leads/{id}?at=, /v1/funnel?at=.",
        )  # fmt: skip
    if stage is not None or playbook is not None:
        await it.lane.look_at_playbooks()
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
        cursor=cursor, limit=limit, playbooks=it.playbooks,
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
    it = house(request)
    items, more = await reads_people.list_accounts(
        it.engine, it.playbooks, after=_text(cursor, "cursor"), limit=limit
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
    found, _ = await reads_people.list_accounts(it.engine, it.playbooks, account=account, limit=1)
    if not found:
        raise NotFoundError(f"there is no account {account!r}", field="domain", value=domain)
    items, more = await reads.list_leads(
        it.engine, account=account, cursor=_cursor_id(cursor) if cursor is not None else None,
        limit=limit, playbooks=it.playbooks,
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
async def get_lead(request: Request, id: str, at: past.AtQuery = None) -> Response:
    """Give one lead with its journeys, as it is now or as Baton knew it at a past moment."""
    it = house(request)
    moment = past.moment_asked(it, at)
    if moment is not None:
        then = await past.then_of(it, required_lead_id(id), moment)
        if isinstance(then, str):
            return merged_elsewhere("/v1/leads/{}", then, moment)
        names = {id: person.name for id, person in it.team.by_id.items()}
        shown = shown_at(then, names)
        # Who had not heard of a rename yet stood in the stage of the new name all the same.
        stood = [as_now(then.playbooks.get(j["playbook"]), j) for j in shown["journeys"]]
        return _json(shown | {"journeys": stood, "as_of": past.told_as_of(it, moment)})
    lead_id = await living_lead(it, id)
    if lead_id != required_lead_id(id):
        return merged_elsewhere("/v1/leads/{}", lead_id)
    lead = await whole_lead(it.engine, lead_id, it.playbooks)
    if lead is None:
        raise NotFoundError(f"there is no lead {id!r}", field="id", value=id)
    return _json(lead)


async def living_lead(it: House, id: str) -> str:
    """Give the lead that `id` is part of now: itself, unless it was merged. Raises NotFoundError."""
    root = await reads_people.root_of(it.engine, required_lead_id(id))
    if root is None:
        raise NotFoundError(f"there is no lead {id!r}", field="id", value=id)
    return root


def merged_elsewhere(path: str, lead_id: str, at: datetime | None = None) -> Response:
    """Send a reader of a merged lead's id on to the survivor (RFC 9110, 15.4.9); `path` has a place for it.

    Not to be kept: a merge can be undone. With `at`, the lead that it was part of then.
    """
    asked = f"?{urlencode({'at': at.isoformat()})}" if at is not None else ""
    headers = {"location": path.format(lead_id) + asked, "cache-control": "no-store"}
    return Response(_encode({"merged_into": lead_id}), 308, headers, media_type="application/json")


@router.get("/v1/funnel", tags=["funnel"], operation_id="get_funnel")
async def get_funnel(
    request: Request,
    playbook: str | None = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
    by: Annotated[str | None, Query(max_length=64, pattern=r"^[A-Za-z0-9_.:-]+$")] = None,
    from_stage: str | None = None,
    to_stage: str | None = None,
    at: past.AtQuery = None,
) -> Response:
    """Give the funnel: reached, current, converted, rate, times; by an attribute; or for a stage pair."""
    if from_stage is not None or to_stage is not None:
        return await get_durations(
            request, from_stage or "", to_stage or "", playbook, since, until, at
        )
    it = house(request)
    await it.lane.look_at_playbooks()
    chosen, moment = playbook_named(it, playbook), past.moment_asked(it, at)
    begin, end = moment_in_utc(since, "from"), moment_in_utc(until, "to")
    if moment is not None:
        chosen = (await past.playbooks_at(it, moment))[chosen.name]
        return _json(await past.funnel_then(it, chosen, moment, since=begin, until=end, by=by))
    return _json(await funnel_numbers.funnel(it.engine, chosen, since=begin, until=end, by=by))


@router.get("/v1/funnel/durations", tags=["funnel"], operation_id="get_durations")
async def get_durations(
    request: Request,
    from_stage: str,
    to_stage: str,
    playbook: str | None = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
    at: past.AtQuery = None,
) -> Response:
    """Give count, median and p90 of the time from reaching one stage of the path to reaching another."""
    it = house(request)
    await it.lane.look_at_playbooks()
    chosen, moment = playbook_named(it, playbook), past.moment_asked(it, at)
    if moment is not None:
        chosen = (await past.playbooks_at(it, moment))[chosen.name]
    _stage(chosen, from_stage, "from_stage", on_path=True)
    _stage(chosen, to_stage, "to_stage", on_path=True)
    begin, end = moment_in_utc(since, "from"), moment_in_utc(until, "to")
    if moment is not None:
        return _json(
            await past.durations_then(
                it, chosen, from_stage, to_stage, moment, since=begin, until=end
            )
        )
    return _json(
        await funnel_numbers.durations(
            it.engine, chosen, from_stage, to_stage, since=begin, until=end
        )
    )
