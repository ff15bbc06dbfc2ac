"""The funnel: how many reach each stage, how many go on, how long it takes; now or at a past moment."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response

from services.contracts.access import Principal
from services.stage_service import funnel_numbers
from services.stage_service.api.access import House, allow, house
from services.stage_service.api.past import counted_then, durations_then, funnel_then, playbooks_at
from services.stage_service.api.reads import playbook_named
from services.stage_service.errors import InvalidRequestError
from services.stage_service.pages.looking_back import day_after, day_written, looked_back
from services.stage_service.pages.rendering import PageRoute, page
from services.stage_service.playbook import Playbook

BY = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
NOT_TO_GROUP_BY = {"name", "first_name", "last_name", "phone", "email"}

Reader = Annotated[Principal, Depends(allow("read"))]
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/funnel")
async def funnel(
    request: Request,
    who: Reader,
    playbook: str | None = None,
    by: str | None = None,
    first: str | None = None,
    second: str | None = None,
    at: str = "",
) -> Response:
    """Show how many reach each stage, how many go on, and how long it takes."""
    it = house(request)
    await it.lane.look_at_playbooks()
    chosen = playbook_named(it, playbook or None)
    given = {name: request.query_params.get(name, "") for name in ("from", "to")}
    group = by if by and BY.fullmatch(by) else None
    back = looked_back(it, at)
    since = until = refused = None
    try:
        since, until = (day_written(given[name], name) for name in given)
    except InvalidRequestError as error:
        refused = error
    end = day_after(until) if until else None
    asking = _Funnel(chosen, since, end, group, first, second)
    told = None
    if back.moment is not None:
        asking.playbook = (await playbooks_at(it, back.moment))[chosen.name]
        try:
            told = await asking.then(it, back.moment)
        except InvalidRequestError as error:
            asking.playbook, back = chosen, replace(back, moment=None, refused=error)
    numbers, took = told or await asking.now(it)
    moment, chosen = back.moment, asking.playbook
    asked = {"playbook": chosen.name, "from": since and since.isoformat(),
             "to": end and end.isoformat(), "by": group, "at": moment and moment.isoformat()}  # fmt: skip
    return page(
        request, "funnel.html", 422 if refused else back.status, who=who, playbook=chosen,
        playbooks=it.playbooks, numbers=numbers, took=took, since=since, until=until, by=group,
        by_refused=bool(by) and group is None, as_of=moment, back=back, given=given, refused=refused,
        attributes=[a for a in chosen.attributes["lead"] if a not in NOT_TO_GROUP_BY],
        json_url=f"/v1/funnel?{urlencode({k: v for k, v in asked.items() if v})}",
    )  # fmt: skip


@dataclass
class _Funnel:
    """What the page asks of a playbook: its funnel, and the times between two of its stages."""

    playbook: Playbook
    since: datetime | None
    until: datetime | None
    by: str | None
    first: str | None
    second: str | None

    def _stages(self) -> tuple[str, str]:
        path = self.playbook.path
        start = self.first if self.first in path else self.playbook.first_stage
        return start, self.second if self.second in path else self.playbook.won_stage

    async def now(self, it: House) -> tuple[dict[str, Any], dict[str, Any]]:
        """Give both as they are."""
        numbers = await funnel_numbers.funnel(
            it.engine, self.playbook, since=self.since, until=self.until, by=self.by
        )
        took = await funnel_numbers.durations(
            it.engine, self.playbook, *self._stages(), since=self.since, until=self.until
        )
        return numbers, took

    async def then(self, it: House, at: datetime) -> tuple[dict[str, Any], dict[str, Any]]:
        """Give both as they were at the moment `at`. Raises InvalidRequestError."""
        counted = await counted_then(it, self.playbook, at)
        numbers = await funnel_then(
            it, self.playbook, at, since=self.since, until=self.until, by=self.by, counted=counted
        )
        took = await durations_then(
            it, self.playbook, *self._stages(), at, since=self.since, until=self.until,
            counted=counted,
        )  # fmt: skip
        return numbers, took
