"""A connector as it is used: what a connector file says, compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import msgspec

from services.stage_service.sources.expressions import Expression
from services.stage_service.sources.source import Choice, Evidence
from services.stage_service.sources.templates import Template

ROOTS = (
    "event", "lead", "owner", "config", "known", "taken", "record", "answer", "status", "headers",
)  # fmt: skip
"""What an expression of a connector file may name; see docs/connectors.md."""

Wins = Literal["baton", "last", "theirs"]
WINS: tuple[Wins, ...] = ("baton", "last", "theirs")
Means = Literal["ok", "absent", "again", "wait", "busy", "refused", "skip", "unauthorised"]
MEANS: tuple[Means, ...] = (
    "ok", "absent", "again", "wait", "busy", "refused", "skip", "unauthorised",
)  # fmt: skip
Grant = Literal["refresh_token", "client_credentials", "jwt_bearer"]
CREDENTIALS: dict[Grant, tuple[str, ...]] = {
    "refresh_token": ("client_id", "client_secret", "refresh_token"),
    "client_credentials": ("client_id", "client_secret"),
    "jwt_bearer": ("client_id", "username", "private_key"),
}
"""What each way to an access token needs."""

Body = Any
"""A JSON body: objects and lists whose leaves are Expressions or constants."""


class Setting(msgspec.Struct, frozen=True):
    """One thing that a subscription may say in `config`."""

    name: str
    about: str
    default: Any = None
    required: bool = False


class Auth(msgspec.Struct, frozen=True):
    """One way to authenticate: used when all its `credentials` are there.

    ``bearer``, ``header`` and ``query`` show a credential as it is, under `name`. ``oauth2`` gets an access
    token from `token_url` by `grant`; `base_from` is the member of its answer that says where the API is.
    """

    kind: Literal["bearer", "header", "query", "oauth2"]
    credentials: tuple[str, ...]
    name: str = "authorization"
    grant: Grant = "refresh_token"
    token_url: Template | None = None
    audience: Template | None = None
    scope: str | None = None
    base_from: str | None = None


class Field(msgspec.Struct, frozen=True):
    """A field of a CRM's record, and who has the say when the two sides differ (docs/connectors.md)."""

    name: str
    value: Choice
    wins: Wins


class Record(msgspec.Struct, frozen=True):
    """A kind of record that is written; `system` is that of its ids among a lead's external ids."""

    name: str
    system: str | None
    link: bool
    key: str | None
    """The field that no two records have the same value of."""
    fields: tuple[Field, ...]


class Meaning(msgspec.Struct, frozen=True):
    """What an answer means, when its status is one of `statuses` (none: any) and `when` holds."""

    means: Means
    statuses: tuple[int, ...]
    when: Expression | None
    retry_after: Expression | None
    because: Template | None


class Reading(msgspec.Struct, frozen=True):
    """Where an answer has the record's id and its fields."""

    id: Expression | None
    fields: Expression | None


class Step(msgspec.Struct, frozen=True):
    """One request of a delivery, and what is taken from its answer."""

    name: str
    line: int
    when: Expression | None
    method: str
    path: Template
    query: tuple[tuple[str, Choice], ...]
    headers: tuple[tuple[str, Template], ...]
    body: Body
    take: tuple[tuple[str, Choice], ...]
    record: str | None
    reads: Reading | None
    writes: bool
    fields: tuple[tuple[str, Choice], ...]
    creates: bool
    settle_s: float
    keep_s: float
    answers: tuple[Meaning, ...]


class Notice(msgspec.Struct, frozen=True):
    """Something told in the delivery when it holds."""

    when: Expression
    because: Template


class Connector(msgspec.Struct, frozen=True):
    """How deliveries to one CRM are made."""

    name: str
    title: str
    evidence: Evidence
    sources: tuple[str, ...]
    """The sources whose deliveries may tell of what this connector wrote."""
    types: tuple[str, ...]
    """The event types that it hears unless the subscription names others."""
    settings: tuple[Setting, ...]
    auth: tuple[Auth, ...]
    base: Template
    headers: tuple[tuple[str, Template], ...]
    values: tuple[tuple[str, Choice], ...]
    skip: tuple[Notice, ...]
    tell: tuple[Notice, ...]
    records: tuple[Record, ...]
    steps: tuple[Step, ...]
    answers: tuple[Meaning, ...]

    def configured(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Give the configuration in use: `config` over the file's defaults.

        An object is laid over the default's members one by one; null takes a member away.
        """
        found: dict[str, Any] = {}
        for setting in self.settings:
            value = config.get(setting.name)
            if isinstance(setting.default, dict) and isinstance(value, dict):
                both = cast("dict[str, Any]", setting.default) | cast("dict[str, Any]", value)
                found[setting.name] = {n: v for n, v in both.items() if v is not None}
            else:
                found[setting.name] = setting.default if value is None else value
        return found

    def auth_for(self, credentials: Mapping[str, str]) -> Auth | None:
        """Give the first way to authenticate that `credentials` allow."""
        for auth in self.auth:
            if all(credentials.get(name) for name in auth.credentials):
                return auth
        return None
