"""The alert that a subscription was stopped: to its contact, a person or a role of the roster. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

import msgspec

from services.contracts.events import SUBSCRIPTION_STOPPED, Message
from services.contracts.published import SubscriptionStopped
from services.contracts.team import Person, Team
from services.notifier.alerts import FALLBACK_ROLE, Alert, addressee_of, first_deliveries
from services.notifier.errors import UnreadableError
from services.notifier.harmless import one_line

KIND = "transition"
"""What it counts as where people chose channels by the kind of alert."""
STAGE = "subscription"
REASON_CHARACTERS_MAX = 300
_THREAD = "subscription:"
"""Alerts of one subscription are one thread, as those of a journey are."""
_WHAT = {
    "gone": "its endpoint answered that it is gone (410)",
    "failing": "nothing went through for five days",
}


def is_news(message: Message) -> bool:
    """Tell whether `message` is about a subscription."""
    return message.type == SUBSCRIPTION_STOPPED


def stopped_alert(
    message: Message, team: Team, public_url: str, make_id: Callable[[], UUID], now: datetime
) -> Alert:
    """Write the alert; raises UnreadableError. A contact nobody knows: leadership hears instead.

    It stands where an alert has a lead under the subscription's id: the two are found by the same reads.
    """
    try:
        told = msgspec.json.decode(message.value, type=SubscriptionStopped)
        subscription_id, stop_id = UUID(told.subscription_id), UUID(told.stop_id)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise UnreadableError(str(error)) from None
    person = _contact(told.contact, team)
    addressee = person or addressee_of(None, team)
    role = next(iter(person.roles), FALLBACK_ROLE) if person is not None else FALLBACK_ROLE
    name = one_line(told.name)
    what = _WHAT.get(told.state, told.state)
    body = (
        f"Baton no longer delivers to the subscription {name}: {what}.\n\n"
        f"The last reason: {one_line(told.reason, REASON_CHARACTERS_MAX)}\n\n"
        "Nothing is lost: mend the endpoint and resume the subscription, and it goes on where it stopped.\n\n"
        f"{public_url.rstrip('/')}/subscriptions/{subscription_id}\n"
    )
    return Alert(
        make_id(), stop_id, person.id if person is not None else f"role:{role}", subscription_id, role,
        person.id if person is not None else None,
        one_line(person.name) if person is not None else None,
        addressee.id if addressee is not None else None,
        f"Subscription stopped: {name}", body, STAGE, None,
        first_deliveries(addressee, KIND, role, urgent=False, now=now),
        journey_id=f"{_THREAD}{subscription_id}",
    )  # fmt: skip


def page_of(journey_id: str | None, lead_id: UUID | None) -> str:
    """Give the page that a message's link opens: the lead's, or the subscription's."""
    about = "subscriptions" if (journey_id or "").startswith(_THREAD) else "leads"
    return f"{about}/{lead_id}"


def _contact(contact: str | None, team: Team) -> Person | None:
    """Give the person that `contact` names, or the first who holds the role that it names."""
    if contact is None:
        return None
    found = team.by_id.get(contact)
    if found is not None:
        return found
    holders = team.by_role.get(contact, ())
    return holders[0] if holders else None
