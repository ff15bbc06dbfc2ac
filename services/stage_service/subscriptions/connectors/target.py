"""A connector as a `Target`: hands an event over by writing it into a CRM.

At least once and in order per lead, as it is called; what is written is compared with what the CRM has, so a
repeat changes nothing. An event older than one that was written already changes nothing either.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import structlog

from services.contracts.database import DATABASE_AWAY
from services.contracts.events import Message
from services.contracts.postgres_log import Executor
from services.stage_service.subscriptions.connectors.calls import Calls, NoAnswerError
from services.stage_service.subscriptions.connectors.connector import Connector
from services.stage_service.subscriptions.connectors.delivery import (
    Answer,
    Asked,
    Finished,
    Recall,
    Wrote,
    run,
)
from services.stage_service.subscriptions.connectors.memory import Memory, Prelude
from services.stage_service.subscriptions.connectors.tokens import NoTokenError, Tokens
from services.stage_service.subscriptions.subscription import Outcome, Subscription

KEPT_ANSWERS_MAX = 1000
_decode = msgspec.json.Decoder().decode
_log = structlog.get_logger("baton.connectors")


class ConnectorTarget:
    """Delivers the events of one subscription by its connector."""

    def __init__(
        self,
        connector: Connector,
        subscription: Subscription,
        executor: Executor,
        calls: Calls,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._connector = connector
        self._records = {record.name: record for record in connector.records}
        self._config = connector.configured(subscription.config)
        self._calls = calls
        self._memory = Memory(executor, subscription.id, connector.name)
        self._clock = clock
        auth = connector.auth_for(subscription.credentials)
        self._tokens = Tokens(auth, subscription.credentials, self._config, calls) if auth else None
        self._kept: dict[str, tuple[datetime, Answer]] = {}

    async def deliver(self, message: Message, attempt: int, now: datetime) -> Outcome:
        """Write `message` into the CRM. Never raises, but for cancellation."""
        began = time.perf_counter()
        trip = _Trip(message.key)
        try:
            outcome = _outcome(await self._deliver(message, trip, now))
        except NoTokenError as error:
            outcome = Outcome(ok=False, reason=str(error), down=True)
        except NoAnswerError as error:
            outcome = Outcome(ok=False, reason=f"{trip.step}: {error}", down=True)
        except DATABASE_AWAY:
            outcome = Outcome(ok=False, reason="Baton's database did not answer")
        except Exception as error:  # a mistake of ours is one delivery's, which is tried again
            _log.error("connector.failed", connector=self._connector.name, exc_info=error)
            outcome = Outcome(ok=False, reason="Baton made a mistake; see its log")
        return msgspec.structs.replace(
            outcome, duration_ms=(time.perf_counter() - began) * 1000, request=trip.shown
        )

    async def close(self) -> None:
        """Close the connections."""
        self._kept.clear()
        await self._calls.close()

    async def _deliver(self, message: Message, trip: _Trip, now: datetime) -> Finished:
        if self._tokens is None:
            ways = " or ".join(", ".join(a.credentials) for a in self._connector.auth)
            raise NoTokenError(f"the subscription lacks credentials: {ways}")
        scope = scope_of(message, self._config)
        prelude = Prelude([])
        if _is_uuid(message.key):  # a test event is about nobody
            owner = cast("dict[str, Any]", scope["owner"] or {})
            prelude = await self._memory.prelude(message.key, owner.get("id"))
        if message.position is not None and message.position < prelude.place:
            return Finished("skip", reason="a newer event of this lead was written already")
        trip.prelude = prelude
        scope["known"] = prelude.external_ids
        if scope["owner"]:
            scope["owner"]["email"] = prelude.owner_email
        finished = await self._drive(scope, trip)
        if finished.verdict == "ok":
            await self._memory.finish(finished.known, message.key, message.position, now)
        return finished

    async def _drive(self, scope: dict[str, Any], trip: _Trip) -> Finished:
        """Do what the delivery wants, one wish after the other."""
        steps = run(self._connector, scope)
        came: Any = None
        while True:
            try:
                wish = steps.send(came)
            except StopIteration as end:
                return cast("Finished", end.value)
            if isinstance(wish, Asked):
                came = await self._ask(wish, trip)
                if isinstance(came, Finished):
                    return came
            elif isinstance(wish, Recall):
                came = await self._memory.recall(wish.record, wish.id, trip.lead_id)
                await self._link(wish.record, wish.id, trip)
            else:
                came = None
                await self._wrote(wish, trip)

    async def _ask(self, asked: Asked, trip: _Trip) -> Answer | Finished:
        """Send a request, remembering first what it writes."""
        kept = self._kept.get(asked.url) if asked.keep_s else None
        if kept is not None and self._clock() < kept[0]:
            return kept[1]
        trip.add(asked)
        writing = asked.writing
        if writing is not None:
            if writing.creates and writing.settle_s:
                wait_s = await self._unsettled(asked, trip)
                if wait_s is not None:
                    return Finished(
                        "busy", reason=f"{asked.step}: an earlier attempt had no answer; looked for again "
                        "once the CRM's search knows of it", retry_after_s=wait_s,
                    )  # fmt: skip
            key = self._records[writing.record].key
            trip.write = await self._memory.begin(writing, trip.lead_id, key, self._clock())
        answer = await self._send(asked)
        if asked.keep_s and 200 <= answer.status < 300:
            if len(self._kept) >= KEPT_ANSWERS_MAX:
                self._kept.clear()
            self._kept[asked.url] = (self._clock() + timedelta(seconds=asked.keep_s), answer)
        return answer

    async def _unsettled(self, asked: Asked, trip: _Trip) -> float | None:
        """Give the seconds to wait before a record may be made that may have been made already."""
        assert asked.writing is not None  # noqa: S101  who asks knows
        settle = timedelta(seconds=asked.writing.settle_s)
        now = self._clock()
        begun = await self._memory.unanswered(asked.writing.record, trip.lead_id, now - settle)
        return (begun + settle - now).total_seconds() if begun is not None else None

    async def _send(self, asked: Asked) -> Answer:
        """Send a request with its credentials; a token that is refused is got anew, once."""
        tokens = self._tokens
        assert tokens is not None  # noqa: S101  asked for before the first request
        shown = await tokens.shown(self._clock())
        for is_last in (not tokens.can_be_renewed, True):
            base = shown.base or self._connector.base.render({"config": self._config})
            if not base:
                raise NoTokenError(
                    "the address of the API has no value: see the subscription's config"
                )
            url = base.rstrip("/") + asked.url
            if shown.query:
                url += ("&" if "?" in url else "?") + shown.query
            headers = asked.headers | shown.headers
            answer = await self._calls.send(asked.method, url, headers, asked.body)
            if answer.status != 401 or is_last:
                return answer
            shown = await tokens.shown(self._clock(), refused=shown.token)
        raise AssertionError

    async def _wrote(self, wish: Wrote, trip: _Trip) -> None:
        if trip.write is None:
            return
        if wish.done:
            await self._memory.end(trip.write, wish.id, self._clock())
            if wish.id is not None:
                await self._link(wish.writing.record, wish.id, trip)
        else:
            await self._memory.forget(trip.write)
        trip.write = None

    async def _link(self, name: str, id: str, trip: _Trip) -> None:
        record = self._records[name]
        known = trip.prelude.identities
        if record.link and record.system and (f"external:{record.system}", id) not in known:
            await self._memory.link(record, id, trip.lead_id, self._clock())


class _Trip:
    """One attempt on its way: for whom, and what was asked last."""

    def __init__(self, lead_id: str) -> None:
        self.lead_id = lead_id
        self.prelude = Prelude([])
        self.write: str | None = None
        self.step = "before the first request"
        self.shown: str | None = None
        self._requests = 0

    def add(self, asked: Asked) -> None:
        self._requests += 1
        self.step = asked.step
        size = f", {len(asked.body)} bytes" if asked.body is not None else ""
        self.shown = f"{asked.method} {asked.shown}{size} (request {self._requests})"


def scope_of(message: Message, config: dict[str, Any]) -> dict[str, Any]:
    """Give what a connector's expressions see of an event; `known` is for the caller to fill."""
    event = cast("dict[str, Any]", _decode(message.value))
    event = event | {"type": message.type, "id": message.id}
    responsible = event.get("responsible")
    holder = cast("dict[str, Any]", responsible) if isinstance(responsible, dict) else event
    owner = holder.get("owner")
    owner = dict(cast("dict[str, Any]", owner)) if isinstance(owner, dict) else None
    return {
        "event": event, "lead": event.get("lead"), "owner": owner, "config": config, "known": {},
    }  # fmt: skip


def _is_uuid(text: str) -> bool:
    try:
        return bool(uuid.UUID(text))
    except ValueError:
        return False


def _outcome(finished: Finished) -> Outcome:
    """Say what `finished` means to the dispatcher; notices are told beside what went well."""
    reason = "; ".join(text for text in (finished.reason, *finished.told) if text) or None
    return Outcome(
        ok=finished.verdict in ("ok", "skip"), status=finished.status, reason=reason,
        response=finished.response, retry_after_s=finished.retry_after_s,
        final=finished.verdict == "refused", down=finished.verdict == "wait",
        apart=finished.verdict == "busy",
    )  # fmt: skip
