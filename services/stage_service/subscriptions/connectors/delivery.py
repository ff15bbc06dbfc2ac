"""A delivery, request by request, as a connector's file says. Pure: no I/O, no clock.

`run` is a generator: it yields what it wants done (`Asked`: a request; `Recall`: what was written to a record
before; `Wrote`: a write is known to have happened) and is sent what came of it. It returns a `Finished`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any, Literal, TypeAlias, cast
from urllib.parse import quote

import msgspec

from services.stage_service.sources.claims import CREATED, is_empty, value_hash
from services.stage_service.sources.conversions import read_time
from services.stage_service.sources.expressions import Expression
from services.stage_service.sources.functions import text_of
from services.stage_service.subscriptions.connectors.connector import (
    Body,
    Connector,
    Field,
    Meaning,
    Record,
    Step,
)

RESTARTS_MAX = 2
"""How often an answer may say ``again`` within one attempt."""
_encode = msgspec.json.Encoder(order="sorted").encode


class Writing(msgspec.Struct, frozen=True):
    """What a request writes: the hash of each field's value. `id` None: nobody knows the record's id yet."""

    record: str
    id: str | None
    fields: dict[str, str]
    creates: bool
    settle_s: float


class Asked(msgspec.Struct, frozen=True):
    """A request to be sent. `url` follows the API's base; `shown` is it without values, for people."""

    step: str
    method: str
    url: str
    shown: str
    headers: dict[str, str]
    body: bytes | None
    writing: Writing | None
    keep_s: float


class Answer(msgspec.Struct, frozen=True):
    """What a request was answered; `body` is its JSON, None when it is none. Header names in lower case."""

    status: int
    headers: dict[str, str] = {}
    body: Any = None
    text: str = ""


class Recall(msgspec.Struct, frozen=True):
    """Asks for the hashes of what was last written to a record, by field; None: it was never written to."""

    record: str
    id: str


class Wrote(msgspec.Struct, frozen=True):
    """Tells that a write happened, to the record `id`; `done` False: it was refused and did not."""

    writing: Writing
    id: str | None
    done: bool


Verdict = Literal["ok", "skip", "wait", "busy", "refused"]


class Finished(msgspec.Struct, frozen=True):
    """What a delivery came to. `told` are its notices, `known` what is remembered of each record by id."""

    verdict: Verdict
    status: int | None = None
    reason: str | None = None
    response: str | None = None
    retry_after_s: float | None = None
    told: tuple[str, ...] = ()
    known: tuple[tuple[str, str, dict[str, str]], ...] = ()
    requests: int = 0


Wish: TypeAlias = "Asked | Recall | Wrote"
Run: TypeAlias = "Generator[Wish, Any, Finished]"


def run(connector: Connector, scope: Mapping[str, Any]) -> Run:
    """Run one attempt over `scope`: ``event``, ``lead``, ``owner``, ``config``, ``known``."""
    requests = 0
    for _ in range(RESTARTS_MAX + 1):
        attempt = _Attempt(connector, dict(scope), requests)
        finished = yield from attempt.run()
        if finished is not None:
            return finished
        requests = attempt.requests
    return Finished("busy", reason="the CRM's record changed again and again meanwhile")


class _Attempt:
    """One pass through the steps."""

    def __init__(self, connector: Connector, scope: dict[str, Any], requests: int) -> None:
        self._connector = connector
        self._records = {record.name: _Known(record) for record in connector.records}
        self._taken: dict[str, Any] = {}
        self._scope: dict[str, Any] = scope | {
            "taken": self._taken, "record": {}, "answer": None, "status": None, "headers": {},
        }  # fmt: skip
        self.requests = requests

    def run(self) -> Generator[Wish, Any, Finished | None]:
        """Go through the steps; None: an answer said that it must be begun again."""
        for name, choice in self._connector.values:
            self._taken[name] = choice.value(self._scope)
        for notice in self._connector.skip:
            if notice.when.evaluate(self._scope) is True:
                return Finished("skip", reason=notice.because.render(self._scope))
        for step in self._connector.steps:
            self._look()
            if step.when is not None and step.when.evaluate(self._scope) is not True:
                continue
            finished = yield from self._take(step)
            if isinstance(finished, Finished):
                return finished
            if finished == "again":
                return None
        return self._finished("ok")

    def _look(self) -> None:
        """Show the records as they are now to the expressions; fields may ask for ids and fields."""
        shown: dict[str, dict[str, Any]] = {
            name: {"id": known.id, "fields": known.theirs} for name, known in self._records.items()
        }
        self._scope["record"] = shown
        for name, known in self._records.items():
            shown[name]["changes"] = known.changes(self._scope)

    def _take(self, step: Step) -> Generator[Wish, Any, Finished | str | None]:
        known = self._records[step.record] if step.record else None
        asked, values, missing = self._asked(step, known)
        if asked is None:
            return Finished(
                "refused", reason=f"step {step.name!r} cannot be made: {missing} has no value",
                requests=self.requests,
            )  # fmt: skip
        self.requests += 1
        answer = cast("Answer", (yield asked))
        self._scope |= {
            "answer": answer.body, "status": answer.status, "headers": answer.headers
        }  # fmt: skip
        meaning = self._meaning(step, answer)
        means = meaning.means if meaning is not None else _usual(answer.status)
        if means not in ("ok", "absent"):
            # A 5xx or 408 may have happened all the same: the write is remembered as one that may have.
            if asked.writing is not None and answer.status < 500 and answer.status != 408:
                yield Wrote(asked.writing, None, False)
            if means == "again":
                return "again"
            return self._ended(step, answer, means, meaning)
        if means == "absent":
            self._scope["answer"] = None
        for name, choice in step.take:
            self._taken[name] = choice.value(self._scope)
        if known is not None and means == "ok":
            yield from self._learn(step, known, asked.writing, values)
        return None

    def _learn(
        self, step: Step, known: _Known, writing: Writing | None, values: dict[str, Any]
    ) -> Generator[Wish, Any, None]:
        """Take from the answer what the record is, and remember what was written to it."""
        found = _value(step.reads.id, self._scope) if step.reads is not None else None
        id = text_of(found)
        if id:
            known.id = id
        if step.reads is not None and step.reads.fields is not None:
            theirs = step.reads.fields.evaluate(self._scope)
            # Of a record that is none any more, as a deleted one, nothing is to be compared with.
            is_there = isinstance(theirs, dict) and known.id is not None
            known.theirs = cast("dict[str, Any]", theirs) if is_there else {}
        if writing is not None:
            yield Wrote(writing, known.id, True)
            known.theirs = known.theirs | values
            known.written = True
        elif known.id and not known.recalled:
            known.memory = cast(
                "dict[str, str] | None", (yield Recall(known.record.name, known.id))
            )
            known.recalled = True

    def _asked(
        self, step: Step, known: _Known | None
    ) -> tuple[Asked | None, dict[str, Any], str | None]:
        """Make the request of `step`; or name what it lacks."""
        path = step.path.render(self._scope, _quoted)
        if path is None:
            return None, {}, step.path.absent(self._scope)
        headers = dict(_rendered((*self._connector.headers, *step.headers), self._scope))
        query = "&".join(
            f"{_quoted(name)}={_quoted(text)}"
            for name, choice in step.query
            if (text := text_of(choice.value(self._scope))) is not None
        )
        body = None
        if step.body is not None:
            body = _encode(body_of(step.body, self._scope))
            headers.setdefault("content-type", "application/json")
        values: dict[str, Any] = {}
        writing = None
        if step.writes and known is not None:
            values = self._written(step, known)
            hashes = {name: value_hash(value) for name, value in values.items()}
            if step.creates:
                hashes[CREATED] = value_hash(True)
            writing = Writing(known.record.name, known.id, hashes, step.creates, step.settle_s)
        asked = Asked(
            step.name, step.method, path + (f"?{query}" if query else ""), step.path.text, headers,
            body, writing, step.keep_s,
        )  # fmt: skip
        return asked, values, None

    def _written(self, step: Step, known: _Known) -> dict[str, Any]:
        if step.fields:
            return {name: choice.value(self._scope) for name, choice in step.fields}
        return known.changes(self._scope)

    def _meaning(self, step: Step, answer: Answer) -> Meaning | None:
        for meaning in (*step.answers, *self._connector.answers):
            if meaning.statuses and answer.status not in meaning.statuses:
                continue
            if meaning.when is None or meaning.when.evaluate(self._scope) is True:
                return meaning
        return None

    def _ended(self, step: Step, answer: Answer, means: str, meaning: Meaning | None) -> Finished:
        said = (
            meaning.because.render(self._scope) if meaning is not None and meaning.because else None
        )
        reason = said or f"answered {answer.status}"
        if means == "unauthorised":
            means, reason = "wait", said or "the credentials are refused"
        after = None
        if meaning is not None and meaning.retry_after is not None:
            after = meaning.retry_after.evaluate(self._scope)
        after_s = float(after) if isinstance(after, int | float) else retry_after(answer.headers)
        return self._finished(
            cast("Verdict", means), status=answer.status, reason=f"{step.name}: {reason}",
            response=answer.text or None, retry_after_s=after_s,
        )  # fmt: skip

    def _finished(self, verdict: Verdict, **more: Any) -> Finished:
        self._look()
        told = tuple(
            text
            for notice in self._connector.tell
            if verdict == "ok"
            and notice.when.evaluate(self._scope) is True
            and (text := notice.because.render(self._scope))
        )
        known = tuple(
            (name, each.id, each.considered(self._scope))
            for name, each in self._records.items()
            if each.id and verdict == "ok"
        )
        return Finished(verdict, told=told, known=known, requests=self.requests, **more)


class _Known:
    """What is known of one record of the CRM during an attempt."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.id: str | None = None
        self.theirs: dict[str, Any] = {}
        self.memory: dict[str, str] | None = None
        """What was last told of each field; None: never."""
        self.recalled = False
        self.written = False

    def ours(self, scope: Mapping[str, Any]) -> dict[str, Any]:
        """Give our value of each field that has one."""
        found = {field.name: field.value.value(scope) for field in self.record.fields}
        return {name: value for name, value in found.items() if not is_empty(value)}

    def considered(self, scope: Mapping[str, Any]) -> dict[str, str]:
        """Give what is remembered after this delivery: our values, written or given way to."""
        return {name: value_hash(value) for name, value in self.ours(scope).items()}

    def changes(self, scope: Mapping[str, Any]) -> dict[str, Any]:
        """Give the fields to write: of the values that differ those where Baton has the say."""
        ours = self.ours(scope)
        return {
            field.name: ours[field.name]
            for field in self.record.fields
            if field.name in ours and self._is_ours(field, ours[field.name])
        }

    def _is_ours(self, field: Field, value: Any) -> bool:
        theirs = self.theirs.get(field.name)
        mine = value_hash(value)
        if mine == value_hash(theirs):
            return False
        last = self.memory.get(field.name) if self.memory is not None else None
        if field.wins == "baton":
            return True
        if field.wins == "theirs":
            return is_empty(theirs) or value_hash(theirs) == last
        # The last writer: ours is newer only if it is another than the one told before. At the first
        # meeting nobody knows who wrote last, and what the CRM has stays.
        return is_empty(theirs) if last is None else mine != last


def body_of(body: Body, scope: Mapping[str, Any]) -> Any:
    """Give the JSON of a compiled body; what has no value is left out."""
    if isinstance(body, Expression):
        return body.evaluate(scope)
    if isinstance(body, dict):
        found = {n: body_of(v, scope) for n, v in cast("dict[str, Body]", body).items()}
        return {name: value for name, value in found.items() if value is not None}
    if isinstance(body, list):
        listed = [body_of(each, scope) for each in cast("list[Body]", body)]
        return [value for value in listed if value is not None]
    return body


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Give the seconds that ``Retry-After`` asks for (RFC 9110, 10.2.3); None when it does not."""
    said = headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said)
    moment = read_time(said, "%a, %d %b %Y %H:%M:%S GMT")
    sent = read_time(headers.get("date", ""), "%a, %d %b %Y %H:%M:%S GMT")
    return max((moment - sent).total_seconds(), 0.0) if moment and sent else None


def _usual(status: int) -> str:
    """Say what a status means that the file says nothing of."""
    if 200 <= status < 300:
        return "ok"
    if status == 401:
        return "unauthorised"
    return "wait" if status in (408, 425, 429) or status >= 500 else "refused"


def _value(expression: Expression | None, scope: Mapping[str, Any]) -> Any:
    return expression.evaluate(scope) if expression is not None else None


def _rendered(
    templates: Iterable[tuple[str, Any]], scope: Mapping[str, Any]
) -> Iterable[tuple[str, str]]:
    for name, template in templates:
        text = template.render(scope)
        if text is not None:
            yield name.lower(), text


def _quoted(text: str) -> str:
    return quote(text, safe="")
