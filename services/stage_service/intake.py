"""A delivery's way from its HTTP request to the commit, whatever the route: is it authentic, what does it
say, apply it, keep what cannot be mapped. Nothing is accepted that is not committed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

import asyncpg
import msgspec
import structlog
from prometheus_client import Counter

from services.contracts.access import Gatekeeper, Principal, required
from services.contracts.audit import Actor, Note, record
from services.contracts.database import DATABASE_AWAY
from services.contracts.problems import (
    ConflictError,
    NotAllowedError,
    NotAuthenticatedError,
    UnavailableError,
)
from services.stage_service import quarantine
from services.stage_service.batch import Outcome
from services.stage_service.lane import ANSWER_WITHIN_S, Lane
from services.stage_service.metrics import DELIVERIES, ECHOES
from services.stage_service.source_secrets import SourceSecrets
from services.stage_service.sources.book import SourceBook
from services.stage_service.sources.mapping import Delivery, Mapped, map_delivery
from services.stage_service.sources.signatures import (
    FIELDS_MAX,
    Key,
    Request,
    api_key,
    credentials_of,
    refusal,
)
from services.stage_service.sources.source import Source
from services.stage_service.subscriptions.connectors.echoes import Echoes

REFRESH_S = 2.0
"""How old sources and stored secrets may be."""
SIFT_WITHIN_S = 2.3
"""How long it may take to tell echoes from news; with the lane's time it is less than HubSpot's 5 s."""
_log = structlog.get_logger("baton.sources")

_WHY = {
    "no-secret": "no secret is set for this source",
    "missing": "the request is not signed as this source signs, or lacks its credentials",
    "expired": "the time of the signature is too far from now",
    "mismatch": "the signature or secret is not the right one",
}
_REMEDIES = {
    "no-secret": "Set it with 'baton sources secret set {}'; it counts within 2 s.",
    "missing": "See 'verify' in the file of the source, and docs/sources.md, 'Verification'.",
    "expired": "Sign anew at each try, and set the clocks of both machines.",
    "mismatch": "Compare the secret at the sender with the one of 'baton sources secret set {}'. "
    "What is signed is told by 'verify' in the file of the source; behind a proxy set BATON_PUBLIC_URL.",
}


class Receipt(msgspec.Struct, frozen=True):
    """What became of an accepted delivery."""

    outcomes: list[Outcome]
    quarantined: int
    ignored: int
    echoes: int = 0
    """What only said what connectors had written; recorded, applied to no lead."""

    def counts(self) -> dict[str, Any]:
        """Give the counts as they are answered."""
        applied = sum(1 for o in self.outcomes if o.status == "applied")
        counts = {
            "success": True,
            "applied": applied,
            "duplicate": len(self.outcomes) - applied,
            "quarantined": self.quarantined,
            "ignored": self.ignored,
        }
        return counts | ({"echo": self.echoes} if self.echoes else {})


class Replay(msgspec.Struct, frozen=True):
    """What a quarantined delivery becomes now."""

    id: str
    source: str
    dry_run: bool
    status: str
    mapped: dict[str, Any]
    results: list[Outcome]


def may_ingest(who: Principal, source: str) -> None:
    """Raise NotAllowedError unless `who` may ingest for the source file `source`."""
    required(who, "ingest")
    if not who.may_ingest_for(source):
        raise NotAllowedError(
            f"the key {who.name!r} is bound to other sources than {source!r}",
            remedy="Use a key of this source, or one that is bound to none.",
        )


class Intake:
    """Takes the deliveries of all sources. `start` it, `stop` it."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        gatekeeper: Gatekeeper,
        lane: Lane,
        book: SourceBook,
        secrets: SourceSecrets,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        echoes: Echoes | None = None,
    ) -> None:
        self._pool = pool
        self._echoes = echoes
        self._gatekeeper = gatekeeper
        self._lane = lane
        self._now = now
        self._task: asyncio.Task[None] | None = None
        self._told: set[str] = set()
        self._counters: dict[tuple[str, str], Counter] = {}
        self.book = book
        self.secrets = secrets

    async def start(self) -> None:
        """Read sources and secrets, and keep them fresh."""
        self.book.refresh()
        await self.secrets.refresh(self._pool)
        if self._echoes is not None:
            await self._echoes.refresh(self._lane.submit)
        self._task = asyncio.create_task(self._refresh(), name="intake")

    async def stop(self) -> None:
        """Stop looking for changes."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                self.book.refresh()
                async with asyncio.timeout(REFRESH_S):
                    await self.secrets.refresh(self._pool)
                    if self._echoes is not None:
                        await self._echoes.refresh(self._lane.submit)
            except DATABASE_AWAY as error:
                _log.debug("intake.not_refreshed", reason=type(error).__name__)
            except Exception as error:  # whatever it is, the next look may succeed
                _log.error("intake.not_refreshed", exc_info=error)

    async def admit(self, source: Source, request: Request) -> Principal | None:
        """Give whose key it is, None when it is signed; its body is looked at no further.

        Raises NotAuthenticatedError unless `request` is authentic, NotAllowedError, RateLimitedError.
        """
        reason = refusal(source.verify, request, self.secrets.of(source.name), self._now())
        if reason is None:
            return None
        if any(isinstance(method, Key) for method in source.verify) and api_key(request):
            who = await self.admit_key(request)
            may_ingest(who, source.name)
            return who
        DELIVERIES.labels(source.name, reason).inc()
        if reason == "no-secret" and source.name not in self._told:
            self._told.add(source.name)
            _log.warning("source.no_secret", source=source.name)
        raise NotAuthenticatedError(
            f"{source.name}: {_WHY[reason]}",
            remedy=_REMEDIES[reason].format(source.name),
        )

    async def admit_key(self, request: Request) -> Principal:
        """Give whose API key `request` shows, and count it.

        Raises NotAuthenticatedError, RateLimitedError, UnavailableError.
        """
        token = api_key(request)
        who = self._gatekeeper.cached(token) if token else None
        if who is None:
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    who = await self._gatekeeper.known(token, request.address)
            except DATABASE_AWAY:
                raise UnavailableError(
                    "the database does not answer", remedy="Send the same events again."
                ) from None
        self._gatekeeper.rates.admit(who)
        return who

    def delivery(self, source: Source, request: Request, *, whole: bool = False) -> Delivery:
        """Make the delivery of `request`; headers and query only when somebody will look at them."""
        wants = source.roots
        content_type = request.only(b"content-type") or b""
        return Delivery(
            request.body,
            self._now(),
            content_type.decode("latin-1"),
            {n.decode("latin-1"): v.decode("latin-1") for n, v in request.headers}
            if whole or "headers" in wants
            else {},
            _query(request.query) if whole or "query" in wants else {},
        )

    async def accept(
        self, source: Source, request: Request, who: Principal | None = None
    ) -> Receipt:
        """Map and apply an authentic delivery; keep it whole when something in it cannot be mapped.

        `who` is whose key it came with. Raises OverloadedError, UnavailableError, RateLimitedError.
        """
        delivery = self.delivery(source, request)
        if self._echoes is not None:
            with contextlib.suppress(
                *DATABASE_AWAY
            ):  # then what is known counts, and what follows says so
                async with asyncio.timeout(SIFT_WITHIN_S):
                    await self._echoes.look_again(source.name)
        mapped = self._mapped(source, delivery)
        if who is not None:
            self._gatekeeper.rates.admit_events(who, len(mapped.events) + len(mapped.defects))
        if mapped.defects:
            outcomes, echoes = await self._keep_and_apply(
                source, request, delivery.received_at, mapped
            )
        else:
            echoes = await self._sifted(source, mapped)
            outcomes = await self._lane.submit(mapped.events) if mapped.events else []
        self._count(source.name, "quarantined" if mapped.defects else "accepted")
        return Receipt(outcomes, len(mapped.defects), mapped.ignored, echoes)

    def _mapped(self, source: Source, delivery: Delivery) -> Mapped:
        marks = self._echoes.marks(source.name) if self._echoes is not None else None
        return map_delivery(source, delivery, marks)

    async def _sifted(self, source: Source, mapped: Mapped) -> int:
        """Take out of `mapped` what is an echo of a connector's write, and record it; give how many."""
        if self._echoes is None or self._echoes.marks(source.name) is None:
            return 0
        try:
            # Beside the wait for the answer to a write: together they fit into a vendor's patience.
            async with asyncio.timeout(SIFT_WITHIN_S):
                count = await self._echoes.sift(source, mapped, self._lane.submit)
        except DATABASE_AWAY:
            raise UnavailableError(
                "the database does not answer", remedy="Send the same delivery again."
            ) from None
        if count:
            ECHOES.labels(source.name).inc(count)
        return count

    def _count(self, source: str, result: str) -> None:
        counter = self._counters.get((source, result))
        if counter is None:
            counter = self._counters[source, result] = DELIVERIES.labels(source, result)
        counter.inc()

    async def replay(self, id: str, by: Actor, *, dry_run: bool) -> Replay | None:
        """Map a quarantined delivery by its source file as it is now, and apply it unless it is a dry run.

        What was applied before is a duplicate. The delivery leaves quarantine when nothing in it is amiss
        any more. None when there is no such delivery; raises ConflictError when it is not open.
        """
        self.book.refresh()  # who has just mended the file shall see that
        found = await quarantine.find_kept(self._pool, id)
        if found is None:
            return None
        kept, delivery = found
        source = self.book.sources.get(kept.source)
        if kept.status != "open" or source is None:
            raise ConflictError(
                f"the delivery is {kept.status} already"
                if kept.status != "open"
                else f"there is no usable file of the source {kept.source!r}",
                remedy="See GET /v1/quarantine for the open ones, and 'baton sources list'.",
            )
        mapped = self._mapped(source, delivery)
        outcomes: list[Outcome] = []
        status = kept.status
        if not dry_run:
            # Before anything is applied: what a person set going is known even if it ends half-way.
            about = {"source": kept.source, "events": len(mapped.events)}
            await record(self._pool, by, Note("replay begun", quarantine.KIND, id, None, about))
            await self._sifted(source, mapped)
            outcomes = await self._lane.submit(mapped.events)
            if mapped.defects:
                await quarantine.update_reasons(self._pool, id, mapped.defects)
            else:
                await quarantine.close(self._pool, kept, "replayed", by, self._now())
                status = "replayed"
        return Replay(id, kept.source, dry_run, status, mapped.shown(), outcomes)

    async def _keep_and_apply(
        self, source: Source, request: Request, received_at: datetime, mapped: Mapped
    ) -> tuple[list[Outcome], int]:
        """Keep the delivery and apply what could be mapped, both within the time of one answer."""
        echoes = await self._sifted(source, mapped)
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await self._keep(source, request, received_at, mapped)
                return await self._lane.submit(mapped.events), echoes
        except DATABASE_AWAY:
            raise UnavailableError(
                "the database does not answer", remedy="Send the same delivery again."
            ) from None

    async def _keep(
        self, source: Source, request: Request, received_at: datetime, mapped: Mapped
    ) -> None:
        whole = self.delivery(source, request, whole=True)
        secret = credentials_of(source.verify)
        # A proxy's header may repeat the address, and with it the token.
        known = [*self.secrets.of(source.name), request.path_token.decode("latin-1")]

        def is_kept(name: str, value: str) -> bool:
            return name not in secret and not any(s and s in unquote(value) for s in known)

        whole = msgspec.structs.replace(
            whole,
            received_at=received_at,
            headers={n: v for n, v in whole.headers.items() if is_kept(n, v)},
            query={n: v for n, v in whole.query.items() if is_kept(n, v)},
        )
        id = await quarantine.keep(self._pool, source.name, whole, mapped.defects)
        first = mapped.defects[0][1]
        _log.info(
            "delivery.quarantined", source=source.name, id=id, code=first.code, field=first.field,
            items=len(mapped.defects),
        )  # fmt: skip


def _query(query: bytes) -> dict[str, str]:
    with contextlib.suppress(ValueError):
        return dict(
            parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=FIELDS_MAX)
        )
    return {}
