"""What people do to subscriptions: make, change, pause, resume, remove, send a test. Each is audited.

`Draft` is a subscription as it is wished; `check` says what is wrong with it before anything is written.
A change moves the `version`, which is the ETag and what whoever delivers looks at; `notify` tells him at
once. Where two rows are locked, the cursor comes first: whoever records results has it before he touches the
subscription. Functions take asyncpg's connection, in a transaction of the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.audit import Actor, Note, record
from services.contracts.events import Message, message_headers
from services.contracts.problems import ChangedMeanwhileError, Defect, NotFoundError, shown
from services.contracts.team import Team
from services.contracts.yaml_source import nearest
from services.stage_service.encryption import Cipher
from services.stage_service.playbook import Playbook
from services.stage_service.store import Connection, as_json
from services.stage_service.subscriptions import reads
from services.stage_service.subscriptions.addresses import Allowed, check_url
from services.stage_service.subscriptions.filters import check_filter, check_types
from services.stage_service.subscriptions.secrets import open_values, seal_values
from services.stage_service.subscriptions.store_deliveries import TEST_TOPIC, notify
from services.stage_service.subscriptions.subscription import (
    CONCURRENCY_DEFAULT,
    TIMEOUT_S_DEFAULT,
    Payload,
    State,
)

KIND = "subscription"
TEST_TYPE = "baton.test.v1"
HEADERS_MAX = 20
HEADER_CHARACTERS_MAX = 4096
TIMEOUT_S_MAX = 30.0
CONCURRENCY_MAX = 64
RATE_MIN = 0.001
RATE_MAX = 10_000.0
CONFIG_BYTES_MAX = 16_384

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HEADER_VALUE = re.compile(r"[!-~](?:[ -~\t]*[!-~])?")
_OURS = re.compile(
    r"(?i:webhook-.*|content-.*|host|connection|keep-alive|te|trailer|transfer-encoding|upgrade|expect|proxy-.*)"
)
"""Headers that are Baton's to set, or the connection's."""

_LOCK_CURSOR = (
    "SELECT position FROM stage.subscription_cursors WHERE subscription_id = $1::uuid FOR UPDATE"
)
_LOCK = f"""
SELECT {reads.COLUMNS} FROM stage.subscriptions s
WHERE s.id = $1::uuid AND s.deleted_at IS NULL FOR UPDATE
"""  # noqa: S608
_INSERT = """
INSERT INTO stage.subscriptions (id, name, connector, url, types, filter, payload, ordered, headers,
  credentials, config, contact, timeout_s, concurrency, rate_per_s, state, state_at, created_at, created_by,
  updated_at)
VALUES ($1::uuid, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::jsonb, $12, $13, $14, $15, 'active', $16, $16,
  $17, $16)
ON CONFLICT (id) DO NOTHING RETURNING id
"""
_UPDATE = """
UPDATE stage.subscriptions SET name = $2, connector = $3, url = $4, types = $5, filter = $6, payload = $7,
  ordered = $8, headers = $9, credentials = $10, config = $11::jsonb, contact = $12, timeout_s = $13,
  concurrency = $14, rate_per_s = $15, updated_at = $16, version = version + 1
WHERE id = $1::uuid
"""
_STATE = """
UPDATE stage.subscriptions SET state = $2, state_reason = $3, state_at = $4, updated_at = $4,
  failing_since = CASE WHEN $2 = 'active' THEN NULL ELSE failing_since END, version = version + 1
WHERE id = $1::uuid
"""
_REMOVE = """
UPDATE stage.subscriptions SET deleted_at = $2, updated_at = $2, version = version + 1, headers = NULL,
  credentials = NULL
WHERE id = $1::uuid
"""


@dataclass(frozen=True)
class Terms:
    """What the operator set: the keys of secrets, the networks that are allowed, and whether http is."""

    cipher: Cipher
    allowed: Allowed
    https_only: bool
    check_connector: Callable[[Draft], Defect | None] | None = None
    """Says what is wrong with a draft that names a connector; None: there are no connectors."""


class Draft(msgspec.Struct, frozen=True):
    """A subscription as it is wished, its headers and credentials opened."""

    name: str
    url: str | None = None
    connector: str | None = None
    types: tuple[str, ...] = ()
    filter: str | None = None
    payload: Payload = "full"
    ordered: bool = True
    headers: dict[str, str] = {}
    credentials: dict[str, str] = {}
    config: dict[str, Any] = {}
    contact: str | None = None
    timeout_s: float = TIMEOUT_S_DEFAULT
    concurrency: int = CONCURRENCY_DEFAULT
    rate_per_s: float | None = None


def check(
    draft: Draft, terms: Terms, playbooks: Mapping[str, Playbook], team: Team
) -> Defect | None:
    """Say what is wrong with `draft`: its address or connector, types, filter, headers and contact."""
    wrong = _wrong_config(draft) or _wrong_place(draft, terms) or check_types(draft.types)
    if wrong is None and draft.filter is not None:
        wrong = check_filter(draft.filter, playbooks)
    return wrong or _wrong_headers(draft.headers) or _wrong_contact(draft, playbooks, team)


def _wrong_place(draft: Draft, terms: Terms) -> Defect | None:
    if draft.connector is not None and draft.url is None:
        if terms.check_connector is not None:
            return terms.check_connector(draft) or _wrong_addresses(draft, terms)
        return Defect(
            "unknown-connector", "connector", "there is no such connector",
            "Send 'url' to get signed webhooks.", shown(draft.connector),
        )  # fmt: skip
    if draft.url is not None and draft.connector is None:
        return check_url(draft.url, terms.allowed, https_only=terms.https_only)
    return Defect(
        "invalid-request", "url", "a subscription has a url or a connector, and not both",
        "Send 'url' to get signed webhooks.",
    )  # fmt: skip


def _wrong_addresses(draft: Draft, terms: Terms) -> Defect | None:
    """Say what is wrong with the addresses that a connector is to call: credentials go there."""
    for name, value in draft.config.items():
        if isinstance(value, str) and "://" in value:
            wrong = check_url(value, terms.allowed, https_only=terms.https_only)
            if wrong is not None:
                return msgspec.structs.replace(wrong, field=f"config.{name}")
    return None


def _wrong_config(draft: Draft) -> Defect | None:
    if draft.connector is None and (draft.config or draft.credentials):
        return Defect(
            "invalid-request", "config" if draft.config else "credentials",
            "this is for connectors", "Leave it out; what a webhook is to carry goes into 'headers'.",
        )  # fmt: skip
    try:
        text = as_json([draft.config, draft.credentials])
    except (ValueError, OverflowError, RecursionError):  # surrogates, numbers without end, depth
        text = "\\u0000"
    if "\\u0000" in text or len(text) > CONFIG_BYTES_MAX:
        return Defect(
            "invalid-request", "config",
            f"it cannot be kept: over {CONFIG_BYTES_MAX} bytes, or with a character that is none",
            "Shorten it.",
        )  # fmt: skip
    return None


def _wrong_headers(headers: Mapping[str, str]) -> Defect | None:
    """Values are secrets: none is told again."""
    if len(headers) > HEADERS_MAX:
        return Defect("too-many", "headers", f"more than {HEADERS_MAX} headers", "Send fewer.")
    for name, value in headers.items():
        field = f"headers.{shown(name)}"
        if not _HEADER_NAME.fullmatch(name):
            return Defect("invalid-header", field, "not a header's name", "Use letters and '-'.")
        if _OURS.fullmatch(name):
            return Defect(
                "invalid-header", field, "Baton sets this header itself", "Take another name."
            )
        if len(value) > HEADER_CHARACTERS_MAX or not _HEADER_VALUE.fullmatch(value):
            return Defect(
                "invalid-header", field,
                f"the value is empty, longer than {HEADER_CHARACTERS_MAX}, or not printable ASCII",
                "Send it in one line, without spaces around it.",
            )  # fmt: skip
    if len({name.lower() for name in headers}) != len(headers):
        return Defect("invalid-header", "headers", "a name comes twice", "Send each once.")
    return None


def _wrong_contact(draft: Draft, playbooks: Mapping[str, Playbook], team: Team) -> Defect | None:
    contact = draft.contact
    known = {*team.by_id, *team.by_role, *(r for p in playbooks.values() for r in p.roles)}
    if contact is None or contact in known:
        return None
    return Defect(
        "unknown-contact", "contact", "nobody in the roster, and no role",
        nearest(contact, known) or "Name the id of a person (GET /v1/people) or a role.", shown(contact),
    )  # fmt: skip


def _columns(terms: Terms, id: str, draft: Draft) -> tuple[Any, ...]:
    return (
        id, draft.name, draft.connector, draft.url, list(draft.types), draft.filter, draft.payload,
        draft.ordered, seal_values(terms.cipher, id, "headers", draft.headers),
        seal_values(terms.cipher, id, "credentials", draft.credentials), as_json(draft.config),
        draft.contact, draft.timeout_s, draft.concurrency, draft.rate_per_s,
    )  # fmt: skip


async def create(
    connection: Connection, terms: Terms, id: str, draft: Draft, position: int, by: Actor, now: datetime
) -> bool:  # fmt: skip
    """Store a new subscription that hears what comes after `position`; False when `id` is there already.

    Raises EncryptionError where nothing can be sealed.
    """
    values = _columns(terms, id, draft)
    if await connection.fetchval(_INSERT, *values, now, by.name) is None:
        return False
    await connection.execute(
        """INSERT INTO stage.subscription_cursors (subscription_id, position, moved_at)
           VALUES ($1::uuid, $2, $3)""",
        id, position, now,
    )  # fmt: skip
    await record(connection, by, Note("added", KIND, id, None, _audited(draft)))
    await notify(connection, id)
    return True


async def locked(
    connection: Connection, terms: Terms, id: str, version: int | None = None
) -> Draft:
    """Lock a subscription and give it.

    Raises NotFoundError, ChangedMeanwhileError unless it is at `version`, and EncryptionError.
    """
    row = await _locked_row(connection, id)
    if version is not None and row["version"] != version:
        raise ChangedMeanwhileError(
            f"the subscription is at version {row['version']}",
            remedy="Read it again and send its ETag.",
        )
    return Draft(
        row["name"], row["url"], row["connector"], tuple(row["types"]), row["filter"], row["payload"],
        row["ordered"], open_values(terms.cipher, id, "headers", row["headers"]),
        open_values(terms.cipher, id, "credentials", row["credentials"]),
        msgspec.json.decode(row["config"]), row["contact"], row["timeout_s"], row["concurrency"],
        row["rate_per_s"],
    )  # fmt: skip


async def _locked_row(connection: Connection, id: str) -> Any:
    row = await connection.fetchrow(_LOCK, id)
    if row is None:
        raise not_found(id)
    return row


def not_found(id: str) -> NotFoundError:
    """Give the error for a subscription that is not there."""
    return NotFoundError(
        f"there is no subscription {shown(id)!r}", field="id", value=id,
        remedy="See GET /v1/subscriptions.",
    )  # fmt: skip


async def change(
    connection: Connection, terms: Terms, id: str, before: Draft, after: Draft, by: Actor, now: datetime
) -> None:  # fmt: skip
    """Write what became of a `locked` subscription."""
    await connection.execute(_UPDATE, *_columns(terms, id, after), now)
    await record(connection, by, Note("changed", KIND, id, _audited(before), _audited(after)))
    await notify(connection, id)


async def set_state(
    connection: Connection,
    id: str,
    state: State,
    by: Actor,
    now: datetime,
    reason: str | None = None,
) -> None:
    """Pause or resume. A resumed one goes on from its place, and what waits for its next try is due at once.

    Raises NotFoundError. The state that it has already is no change.
    """
    await connection.execute(_LOCK_CURSOR, id)
    row = await _locked_row(connection, id)
    if row["state"] == state:
        return
    await connection.execute(_STATE, id, state, reason, now)
    if state == "active":
        await connection.execute(
            """UPDATE stage.deliveries SET next_at = $2
               WHERE subscription_id = $1::uuid AND state = 'due' AND next_at > $2""",
            id, now,
        )  # fmt: skip
    done = "resumed" if state == "active" else "paused"
    became = {"state": state, "reason": reason}
    await record(connection, by, Note(done, KIND, id, {"state": row["state"]}, became))
    await notify(connection, id)


async def touch(connection: Connection, id: str, done: str, by: Actor, now: datetime) -> None:
    """Note that something beside the subscription changed (its secrets), so that it is read again."""
    await connection.execute(
        """UPDATE stage.subscriptions SET updated_at = $2, version = version + 1
           WHERE id = $1::uuid""",
        id, now,
    )  # fmt: skip
    await record(connection, by, Note(done, KIND, id))
    await notify(connection, id)


async def remove(
    connection: Connection, id: str, by: Actor, now: datetime, version: int | None = None
) -> None:
    """Remove a subscription and its secrets; its deliveries stay readable in the database until pruned.

    Raises NotFoundError, and ChangedMeanwhileError unless it is at `version`.
    """
    await connection.execute(_LOCK_CURSOR, id)
    row = await _locked_row(connection, id)
    if version is not None and row["version"] != version:
        raise ChangedMeanwhileError(
            f"the subscription is at version {row['version']}",
            remedy="Read it again and send its ETag.",
        )
    await connection.execute(_REMOVE, id, now)
    await connection.execute(
        "DELETE FROM stage.subscription_secrets WHERE subscription_id = $1::uuid", id
    )
    await record(connection, by, Note("removed", KIND, id, {"name": row["name"]}))
    await notify(connection, id)


def test_message(id: str, event_id: str, now: datetime) -> Message:
    """Make the event that a test of the subscription `id` delivers."""
    value = {
        "subscription_id": id,
        "text": "A test event of Baton: it tells of no lead, and is in no log.",
    }
    headers = message_headers(event_id, TEST_TYPE, now)
    return Message(TEST_TOPIC, id, headers, msgspec.json.encode(value))


def _audited(draft: Draft) -> dict[str, Any]:
    """Give a draft for the audit: of secrets the names, of the address no query."""
    told = msgspec.to_builtins(draft)
    told["headers"] = sorted(draft.headers)
    told["credentials"] = sorted(draft.credentials)
    told["url"] = draft.url and draft.url.partition("?")[0]
    return told
