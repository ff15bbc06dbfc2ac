"""One message for several alerts: its subject and its list, on which every alert stands. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from services.notifier.alerts import SUBJECT_CHARACTERS_MAX
from services.notifier.harmless import one_line


class Listed(msgspec.Struct, frozen=True):
    """An alert as a list shows it."""

    alert_id: UUID
    lead_id: UUID
    subject: str
    company: str | None
    created_at: datetime


def write_digest(
    listed: Sequence[Listed], time_zone: str, why: str, public_url: str
) -> tuple[str, str]:
    """Write subject and body of a message that tells `listed`, oldest first; none is left out."""
    zone = ZoneInfo(time_zone)
    leads = len({each.lead_id for each in listed})
    companies = {each.company for each in listed}
    of = f" of {listed[0].company}" if len(companies) == 1 and listed[0].company else ""
    who = f"{leads} leads{of}" if leads > 1 else "one lead"
    subject = one_line(f"{len(listed)} alerts about {who}", SUBJECT_CHARACTERS_MAX)
    site = public_url.rstrip("/")
    lines = [f"{len(listed)} alerts about {who} in one message ({why}).", ""]
    for number, each in enumerate(listed, 1):
        when = f"{each.created_at.astimezone(zone):%Y-%m-%d %H:%M}"
        lines.append(f"{number}. {when}  {each.subject}")
        lines.append(f"   {site}/leads/{each.lead_id}")
    lines += ["", f"All of them: {site}/alerts", ""]
    return subject, "\n".join(lines)
