"""What the routes of subscriptions take as bodies; pydantic says what does not fit."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from services.contracts.bodies import RequestBody, Truth
from services.stage_service.subscriptions import changes
from services.stage_service.subscriptions.addresses import URL_CHARACTERS_MAX
from services.stage_service.subscriptions.secrets import KEEP_S_DEFAULT, KEEP_S_MAX, Kind
from services.stage_service.subscriptions.subscription import (
    CONCURRENCY_DEFAULT,
    TIMEOUT_S_DEFAULT,
    Payload,
)

_PLAIN = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"


def _text_only(value: object) -> object:
    # A number, also as text, would be read as seconds since 1970.
    if not isinstance(value, datetime) and not (isinstance(value, str) and value[4:5] == "-"):
        raise ValueError("write a time as RFC 3339")
    return value


Moment = Annotated[datetime, BeforeValidator(_text_only)]
Position = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=_PLAIN, examples=["CRM"])]
Url = Annotated[
    str,
    Field(max_length=URL_CHARACTERS_MAX, examples=["https://crm.example.com/baton"],
          description="where events are posted to; https, of the public internet"),
]  # fmt: skip
Types = Annotated[
    list[Annotated[str, Field(max_length=128)]],
    Field(description="event types, a trailing * for all that begin so; none: all",
          examples=[["baton.stage.*"]]),
]  # fmt: skip
Filter = Annotated[
    str,
    Field(description="a condition in CEL (docs/webhooks.md)",
          examples=["to == 'sql' && lead.country == 'DE'"]),
]  # fmt: skip
Contact = Annotated[
    str,
    Field(max_length=64, description="id of a person, or a role, who hears when Baton stops it"),
]
TimeoutS = Annotated[
    float, Field(strict=True, ge=1, le=changes.TIMEOUT_S_MAX, description="for one attempt")
]
Concurrency = Annotated[
    int,
    Field(strict=True, ge=1, le=changes.CONCURRENCY_MAX, description="attempts at the same time"),
]
Rate = Annotated[
    float, Field(strict=True, ge=changes.RATE_MIN, le=changes.RATE_MAX, allow_inf_nan=False)
]
Headers = Annotated[
    dict[str, str],
    Field(description="sent with each delivery; sealed, not told again",
          examples=[{"authorization": "Bearer ..."}]),
]  # fmt: skip


class NewSubscription(RequestBody):
    """What to hear, and where to."""

    name: Name
    url: Url | None = None
    connector: str | None = Field(
        None, max_length=64, description="instead of a URL: a CRM's own API (docs/connectors.md)"
    )
    types: Types = Field([])
    filter: Filter | None = None
    payload: Payload = Field("full", description="thin: ids only, no personal data")
    ordered: Truth = Field(True, description="an event waits for the earlier ones of its lead")
    headers: Headers = Field({})
    credentials: dict[str, str] = Field({}, description="of a connector; sealed, not told again")
    config: dict[str, Any] = Field({}, description="of a connector")
    contact: Contact | None = None
    timeout_s: TimeoutS = TIMEOUT_S_DEFAULT
    concurrency: Concurrency = CONCURRENCY_DEFAULT
    rate_per_s: Rate | None = None
    start: Literal["now", "beginning"] | Position | Moment = Field(
        "now", alias="from",
        description="where it begins: now, the beginning, after a position of the feed, or at a time",
    )  # fmt: skip
    signature: Kind = Field("v1", description="v1: HMAC-SHA256; v1a: Ed25519, with a public key")
    secret: str | None = Field(
        None,
        max_length=200,
        description="whsec_... or whsk_... of your own; without it one is made",
    )


class SubscriptionChange(RequestBody):
    """What is to be different (JSON Merge Patch, RFC 7396): what is left out stays, null is the default."""

    name: Name | None = None
    url: Url | None = None
    types: Types | None = None
    filter: Filter | None = None
    payload: Payload | None = None
    ordered: Truth | None = None
    headers: dict[str, str | None] | None = Field(
        None, description="by name; null removes one, the others stay"
    )
    credentials: dict[str, str | None] | None = None
    config: dict[str, Any] | None = None
    contact: Contact | None = None
    timeout_s: TimeoutS | None = None
    concurrency: Concurrency | None = None
    rate_per_s: Rate | None = None


class Rotation(RequestBody):
    """What the new secret is, and how long the old one signs beside it."""

    signature: Kind | None = Field(None, description="without it, as the present one")
    secret: str | None = Field(None, max_length=200, description="without it one is made")
    keep_s: float = Field(
        KEEP_S_DEFAULT,
        strict=True,
        ge=0,
        le=KEEP_S_MAX,
        description="seconds; 0: the old one was stolen",
    )


class Pausing(RequestBody):
    """Why."""

    reason: str | None = Field(None, min_length=1, max_length=200, pattern=r"^[^\x00]*$")


class FailedRange(RequestBody):
    """Which deliveries that were given up: by when each was first made."""

    since: Moment
    until: Moment | None = Field(None, description="before this; without it, now")


class Replay(RequestBody):
    """From where."""

    start: Literal["beginning"] | Position | Moment = Field(
        alias="from",
        description="after this position of the feed, from this time on, or from the beginning",
    )
