"""Quarantine: authentic deliveries that could not be mapped, kept whole until they are replayed.

A delivery is kept with its raw body, the reasons, and of its headers and query what carries no secret.
The vendor that sends it again finds the same row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
import uuid_utils

from services.contracts import audit
from services.contracts.audit import Actor, Note
from services.contracts.postgres_log import Executor
from services.contracts.problems import Defect
from services.stage_service.sources.mapping import Delivery

KIND = "quarantine"
REASONS_MAX = 20
HEADERS_MAX = 64
HEADER_CHARACTERS_MAX = 1024
PAGE_MAX = 200
SECRET_WORDS = ("auth", "cookie", "signature", "token", "secret", "key", "password", "hmac")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Kept(msgspec.Struct, frozen=True):
    """One quarantined delivery."""

    id: str
    source: str
    received_at: datetime
    last_received_at: datetime
    times: int
    content_type: str
    bytes: int
    reasons: list[dict[str, Any]]
    status: str
    closed_at: datetime | None
    closed_by: str | None


def without_secrets(pairs: dict[str, str]) -> dict[str, str]:
    """Leave out of headers or a query what may authenticate."""
    kept = {
        name: value[:HEADER_CHARACTERS_MAX]
        for name, value in pairs.items()
        if not _may_authenticate(name.lower()) and "\x00" not in name + value
    }
    return dict(list(kept.items())[:HEADERS_MAX])


def _may_authenticate(name: str) -> bool:
    # An idempotency key proves nothing, and a replay may need it: it can be the event's id.
    return "idempotency" not in name and any(word in name for word in SECRET_WORDS)


async def keep(
    executor: Executor, source: str, delivery: Delivery, defects: Sequence[tuple[int, Defect]]
) -> str:
    """Keep `delivery` for its `defects` (item index, what is wrong); gives the row's id.

    An open row of the same source and body is counted up and gets the new reasons.
    """
    rows = await executor.fetch(
        """INSERT INTO stage.quarantine (id, source, received_at, last_received_at, body, body_hash,
                                         content_type, headers, query, reasons)
           VALUES ($1, $2, $3, $3, $4, $5, $6, $7, $8, $9)
           ON CONFLICT (source, body_hash) WHERE status = 'open' DO UPDATE
             SET times = quarantine.times + 1, last_received_at = excluded.last_received_at,
                 reasons = excluded.reasons
           RETURNING id::text""",
        str(uuid_utils.uuid7()), source, delivery.received_at, delivery.body,
        hashlib.sha256(delivery.body).digest(), _text(delivery.content_type),
        _encode(without_secrets(delivery.headers)).decode(),
        _encode(without_secrets(delivery.query)).decode(), _reasons(defects),
    )  # fmt: skip
    return rows[0]["id"]


def _text(value: str) -> str:
    return value.replace("\x00", "")[:HEADER_CHARACTERS_MAX]


def _reasons(defects: Sequence[tuple[int, Defect]]) -> str:
    found = [{"item": index, **defect.body()} for index, defect in defects[:REASONS_MAX]]
    if len(defects) > REASONS_MAX:
        found.append({"item": None, "code": "more", "reason": f"{len(defects)} items in all"})
    return _encode(found).decode()


# To be sorted by the column, not by the text of that name: the column has an index.
_COLUMNS = """id::text, source, received_at, last_received_at, times, content_type,
              octet_length(body) AS bytes, reasons, status, closed_at, closed_by"""


def _kept(row: Any) -> Kept:
    return msgspec.convert({**row, "reasons": _decode(row["reasons"])}, Kept)


async def list_kept(
    executor: Executor,
    *,
    source: str | None = None,
    status: str | None = "open",
    before: str | None = None,
    limit: int = 50,
) -> tuple[list[Kept], str | None]:
    """List deliveries, newest first; gives them and the next page's cursor (an id)."""
    rows = await executor.fetch(
        f"""SELECT {_COLUMNS} FROM stage.quarantine
            WHERE ($1::text IS NULL OR source = $1) AND ($2::text IS NULL OR status = $2)
              AND ($3::uuid IS NULL OR id < $3) ORDER BY quarantine.id DESC LIMIT $4""",  # noqa: S608  constants
        source, status, before, limit + 1,
    )  # fmt: skip
    found = [_kept(row) for row in rows[:limit]]
    return found, found[-1].id if len(rows) > limit else None


async def find_kept(executor: Executor, id: str) -> tuple[Kept, Delivery] | None:
    """Give a quarantined delivery with what is needed to map it again; None when there is none."""
    rows = await executor.fetch(
        f"SELECT {_COLUMNS}, body, headers, query FROM stage.quarantine WHERE id = $1",  # noqa: S608
        id,
    )
    if not rows:
        return None
    row = dict(rows[0])
    body, headers, query = (row.pop(name) for name in ("body", "headers", "query"))
    delivery = Delivery(
        body, row["received_at"], row["content_type"], _decode(headers), _decode(query)
    )
    return _kept(row), delivery


async def close(
    executor: Executor, kept: Kept, status: Literal["replayed", "discarded"], by: Actor, now: datetime
) -> bool:  # fmt: skip
    """Close an open delivery as `status`, and audit it; False when it was not open."""
    rows = await audit.done(
        executor,
        """UPDATE stage.quarantine SET status = $2, closed_at = $3, closed_by = $4
           WHERE id = $1 AND status = 'open' RETURNING id""",
        (kept.id, status, now, by.name), by,
        Note(status, KIND, kept.id, {"source": kept.source, "status": "open"},
             {"source": kept.source, "status": status}),
    )  # fmt: skip
    return bool(rows)


async def update_reasons(
    executor: Executor, id: str, defects: Sequence[tuple[int, Defect]]
) -> None:
    """Replace the reasons of a delivery by those of a replay."""
    await executor.execute(
        "UPDATE stage.quarantine SET reasons = $2 WHERE id = $1", id, _reasons(defects)
    )


async def open_ids(executor: Executor, source: str, limit: int) -> list[str]:
    """Give the ids of the open deliveries of `source`, oldest first."""
    rows = await executor.fetch(
        """SELECT id::text FROM stage.quarantine WHERE source = $1 AND status = 'open'
           ORDER BY quarantine.id LIMIT $2""",
        source, limit,
    )  # fmt: skip
    return [row["id"] for row in rows]
