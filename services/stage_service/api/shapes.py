"""Shapes of answers that several routes of the stage service share; each resource has its ``*_answers.py``.

They are there for the OpenAPI document; nothing is built from them. Answers are written as JSON straight from
the reads; tests hold them and these shapes together. More members may come; a reader ignores what it does not
know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from services.contracts.leads import Id, Moment

Stage = Annotated[str, msgspec.Meta(description="key of a stage", examples=["mql"])]
Role = Annotated[str, msgspec.Meta(examples=["ae"])]
Person = Annotated[str, msgspec.Meta(description="id in the roster", examples=["jonas"])]


class Status(msgspec.Struct):
    """How the process is."""

    status: Annotated[str, msgspec.Meta(examples=["ok"])]
    reason: str | UnsetType = UNSET


class Success(msgspec.Struct):
    """It is committed."""

    success: Literal[True]


class AsOf(msgspec.Struct):
    """The past moment that an answer is about; `settled`: nothing that had arrived by then is on its way."""

    at: Moment
    settled: bool


class AuditEntry(msgspec.Struct):
    """One deed: who, by what way in, what, to which object, before and after."""

    id: int
    at: Moment
    actor: str
    via: Literal["key", "session", "link", "slack", "command", "system"]
    key_id: str | None
    on_behalf_of: str | None
    action: str
    kind: str
    subject: str
    lead_id: Id | None
    before: Any
    after: Any
    digest: str
