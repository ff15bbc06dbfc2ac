"""The audit: who did what, when, and what was before and after; both services and the command line write it.

A deed and its entry are one transaction: `record` takes the connection of the deed's. At the commit the
database makes it the next entry of a chain of digests (docs/decisions/0027), so that an entry that was
changed, left out or slipped in shows: `follow` says where. Schema `audit` is shared, as `access` is.

Nothing secret and nothing that was typed about a lead gets in, by construction: of each kind of object only
the fields named in `TOLD` are taken, and what looks like a secret, or an address with more than its place,
is cut out of their values.
"""

from __future__ import annotations

import getpass
import hashlib
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, cast

import msgspec

from services.contracts.postgres_log import Executor

Via = Literal["key", "session", "link", "slack", "command", "system"]
FIRST = bytes(32)
"""What stands for the digest before the first entry."""
TEXT_CHARACTERS_MAX = 500
ITEMS_MAX = 200
CUT = "[cut]"

TOLD: Mapping[str, frozenset[str]] = {
    "person": frozenset({
        "id", "name", "email", "roles", "territories", "weight", "time_zone", "working_hours", "hours",
        "holidays", "away", "quiet", "skills", "team", "capacity", "channels", "leads", "alerts",
    }),
    "subscription": frozenset({
        "name", "url", "connector", "types", "filter", "payload", "ordered", "headers", "credentials",
        "contact", "timeout_s", "concurrency", "rate_per_s", "state", "reason", "delivery", "from", "since",
        "until", "count", "config",
    }),
    "journey": frozenset({
        "playbook", "key", "stage", "force", "transitions", "held", "missing", "event", "role", "owner",
        "status",
    }),
    "handoff": frozenset({"state", "playbook", "key", "role", "round", "person", "met", "event"}),
    "lead": frozenset({"leads", "lead", "merge", "event", "status", "changed", "left"}),
    "key": frozenset({"name", "kind", "scopes", "sources", "rate", "event_rate", "active"}),
    "session": frozenset({"name", "kind", "scopes", "active"}),
    "source": frozenset({"secrets", "added", "removed", "kept"}),
    "quarantine": frozenset({"source", "status", "events", "still_amiss"}),
    "playbook": frozenset({
        "version", "digest", "active_at", "message", "file", "retired", "epoch", "back_to", "reason",
    }),
    "alert": frozenset({"status", "until", "channels", "role", "person"}),
    "mute": frozenset({"person", "until"}),
    "channel": frozenset({"channels"}),
    "dead_letter": frozenset({"topic", "status"}),
    "snapshots": frozenset({"leads"}),
    "database": frozenset({"revision", "repaired", "left", "workers"}),
}  # fmt: skip
"""Of each kind of object, the fields that its entries tell."""

_SECRET_NAME = re.compile(
    r"(?i)secret|token|passw|credential|authori[sz]ation|cookie|api_?key|signature"
)
_SECRET_TEXT = re.compile(
    r"bat_[0-9a-f]{6,}_\S+|wh(?:sec|sk|pk)_\S+|(?i:bearer|basic)\s+\S{6,}|eyJ[\w-]+\.[\w-]+\.[\w-]*"
)
_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(\S*)")


class Actor(msgspec.Struct, frozen=True):
    """Who acts: a name people know, and the API key or session it came by.

    Without `via` the key tells. `on_behalf_of`: for whom, as whoever acted says.
    """

    name: str
    key_id: str | None = None
    via: Via | None = None
    on_behalf_of: str | None = None


class Note(msgspec.Struct, frozen=True):
    """One deed, still to be recorded: what was done to which object, and what it was and became."""

    action: str
    kind: str
    subject: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    lead_id: str | None = None


class Entry(msgspec.Struct, frozen=True):
    """One entry as it is stored and exported; `before` and `after` are JSON as it was hashed."""

    id: int
    at: datetime
    actor: str
    via: str
    key_id: str | None
    on_behalf_of: str | None
    action: str
    kind: str
    subject: str
    lead_id: str | None
    before: msgspec.Raw
    after: msgspec.Raw
    digest: str


COLUMNS = """seq AS id, at, actor, via, key_id, on_behalf_of, action, kind, subject, lead_id::text,
  before::text, after::text, encode(digest, 'hex') AS digest"""
_NOTE = """
INSERT INTO audit.noted (actor, via, key_id, on_behalf_of, action, kind, subject, lead_id, before, after)
SELECT coalesce(k.name, n.actor),
  coalesce(n.via, CASE WHEN n.key_id IS NULL THEN 'system' WHEN k.kind IN ('session', 'login')
    THEN 'session' ELSE 'key' END),
  n.key_id, nullif(coalesce(n.on_behalf_of, n.actor), coalesce(k.name, n.actor)), n.action, n.kind,
  n.subject, n.lead_id::uuid, n.before::json, n.after::json
FROM (VALUES ({values})) AS n(actor, via, key_id, on_behalf_of, action, kind, subject, lead_id, before, after)
  LEFT JOIN access.keys k ON k.id = n.key_id
{only}
"""
_encode = msgspec.json.Encoder(order="sorted").encode


async def record(connection: Executor, by: Actor, *notes: Note) -> None:
    """Add to the audit, in the transaction of `connection`, that `by` did what `notes` say.

    Raises ValueError for a kind of object that `TOLD` does not know.
    """
    for note in notes:
        values = _values(by, note)
        await connection.execute(_NOTE.format(values=_places(0, len(values)), only=""), *values)


async def done(
    connection: Executor, statement: str, args: Sequence[Any], by: Actor, note: Note
) -> list[Any]:
    """Run `statement`, an INSERT, UPDATE or DELETE with RETURNING, and give its rows.

    If there are any, `by` did what `note` says: both in this one statement, so that it needs no
    transaction of the caller.
    """
    values = _values(by, note)
    noted = _NOTE.format(
        values=_places(len(args), len(values)), only="WHERE EXISTS (SELECT FROM deed)"
    )
    return await connection.fetch(
        f"WITH deed AS ({statement}), noted AS ({noted}) SELECT * FROM deed",  # noqa: S608  ours
        *args,
        *values,
    )


def _places(after: int, count: int) -> str:
    return ", ".join(f"${after + number}::text" for number in range(1, count + 1))


def _values(by: Actor, note: Note) -> tuple[str | None, ...]:
    return (
        _text(by.name), by.via, by.key_id and _text(by.key_id), by.on_behalf_of and _text(by.on_behalf_of),
        note.action, note.kind, _text(note.subject), note.lead_id, _json(note.kind, note.before),
        _json(note.kind, note.after),
    )  # fmt: skip


def on_the_command_line() -> Actor:
    """Give who runs a command: the user of the system and its name; not proven, but nobody else could be."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return Actor(f"{user}@{socket.gethostname()}", via="command")


def entry_of(row: Any) -> Entry:
    """Read an entry from a row of `COLUMNS`."""
    values = dict(row)
    for name in ("before", "after"):
        values[name] = msgspec.Raw((values[name] or "null").encode())
    return Entry(**values)


def told(kind: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Give what an entry tells of an object of `kind`: the named fields, without secrets.

    Raises ValueError for an unknown kind.
    """
    if kind not in TOLD:
        raise ValueError(
            f"the audit knows no {kind!r}: say in contracts/audit.py what it tells of one"
        )
    return {n: _harmless(n, value) for n, value in document.items() if n in TOLD[kind]}


def _json(kind: str, document: Mapping[str, Any] | None) -> str | None:
    if document is None:
        return None
    plain = cast("dict[str, Any]", msgspec.to_builtins(document))
    return _encode(told(kind, plain)).decode()


def _harmless(name: str, value: Any) -> Any:
    """Cut secrets out of `value`; under a name like that of a secret only the names within are told."""
    if isinstance(value, Mapping):
        each = cast("Mapping[str, Any]", value)
        if _SECRET_NAME.search(name) or name == "headers":
            return sorted(map(str, each))[:ITEMS_MAX]
        return {
            _text(str(key)): _harmless(str(key), v) for key, v in list(each.items())[:ITEMS_MAX]
        }
    if isinstance(value, list | tuple):
        items = cast("list[Any]", value)[:ITEMS_MAX]
        return [_harmless(name, item) for item in items]
    if isinstance(value, str):
        # What was written already as a list of names stays: they are no values.
        is_name = name in ("headers", "credentials", "secrets")
        return CUT if _SECRET_NAME.search(name) and not is_name else _text(value)
    return value


def _text(value: str) -> str:
    """Give `value` without what looks like a secret, NUL and excess; an address is cut to its place."""
    plain = _SECRET_TEXT.sub(CUT, value.replace("\x00", ""))
    return _ADDRESS.sub(_place, plain)[:TEXT_CHARACTERS_MAX]


def _place(found: re.Match[str]) -> str:
    scheme, rest = found.groups()
    if scheme.lower() not in ("http", "https"):
        return f"{scheme}://..."
    # A hook's path is often its secret; its host tells where things go.
    host = re.split(r"[/?#]", rest)[0]
    slash = "/" if rest[len(host) :].startswith("/") else ""
    return f"{scheme}://..." if "@" in rest else f"{scheme}://{host}{slash}"


def digest_of(before: bytes, entry: Entry) -> bytes:
    """Give the digest that `entry` has after one with the digest `before`."""
    at = entry.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    fields = (
        str(entry.id), at, entry.actor, entry.via, entry.key_id, entry.on_behalf_of, entry.action, entry.kind,
        entry.subject, entry.lead_id, _raw(entry.before), _raw(entry.after),
    )  # fmt: skip
    return hashlib.sha256(before + b"".join(map(_netstring, fields))).digest()


def _netstring(field: str | None) -> bytes:
    if field is None:
        return b"-,"
    data = field.encode()
    return b"%d:%b," % (len(data), data)


def _raw(value: msgspec.Raw) -> str | None:
    text = bytes(value).decode()
    return None if text == "null" else text


class Chain:
    """Follows the chain from an entry on; `broken` says the first thing that is amiss."""

    def __init__(self, seq: int = 0, digest: bytes = FIRST) -> None:
        self.seq = seq
        self.digest = digest
        self.broken: str | None = None

    def follow(self, entries: Iterable[Entry]) -> bool:
        """Check that `entries`, in order, go on where the last ones ended. False: see `broken`."""
        for entry in entries:
            if entry.id != self.seq + 1:
                self.broken = (
                    f"after entry {self.seq} comes {entry.id}: entries are missing, or came twice"
                )
                return False
            digest = digest_of(self.digest, entry)
            if digest.hex() != entry.digest:
                self.broken = (
                    f"entry {entry.id} is not what was recorded, or an entry before it is not"
                )
                return False
            self.seq, self.digest = entry.id, digest
        return True
