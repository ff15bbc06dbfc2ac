"""(f) A HubSpot delivery of one event, signed, against the same event posted to ``/v1/events``."""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.ground import Ground, count, settle
from bench.load import WRK_MISSING, Load, has_wrk, wrk_prepared
from bench.measure import Figure, Options, Result, alternate

KEY = "f"
TITLE = "A signed webhook"
METHOD = (
    "wrk, 1 thread, {connections} keep-alive connections, requests prepared beforehand, each of a new event "
    "about a new contact. Ours: a HubSpot delivery with its v3 signature, verified, read, split, mapped by "
    "sources/hubspot.yaml, committed, answered. Baseline: the lead event that it becomes, as a structured "
    "CloudEvent to /v1/events of the same service."
)
WARM_S = 3
PER_SECOND = 12_000
"""More requests are prepared for every second than one worker answers."""
SECRET = "a-secret-of-the-benchmark"
SOURCES = Path(__file__).resolve().parents[1] / "sources"


def deliveries(url: str, first: int, requests: int) -> list[str]:
    """Prepare HubSpot's deliveries from number `first` on, signed now."""
    lines: list[str] = []
    at = int(time.time() * 1000)
    head = f"POST{url}/webhooks/hubspot".encode()
    for number in range(first, first + requests):
        body = json.dumps([{
            "eventId": number, "subscriptionId": 6527595, "portalId": 48975575, "appId": 39522895,
            "occurredAt": at, "subscriptionType": "contact.creation", "attemptNumber": 0,
            "objectId": 508369434347 + number, "changeFlag": "CREATED", "changeSource": "INTEGRATION",
            "sourceId": "39522895",
        }])  # fmt: skip
        digest = hmac.digest(SECRET.encode(), head + body.encode() + str(at).encode(), "sha256")
        lines.append("\t".join((
            "/webhooks/hubspot", "Content-Type", "application/json", "X-HubSpot-Request-Timestamp", str(at),
            "X-HubSpot-Signature-v3", base64.b64encode(digest).decode(), body,
        )))  # fmt: skip
    return lines


def events(key: str, prefix: str, first: int, requests: int) -> list[str]:
    """Prepare the CloudEvents that such deliveries become."""
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return [
        "\t".join((
            "/v1/events", "Content-Type", "application/cloudevents+json", "Authorization", f"Bearer {key}",
            json.dumps({
                "specversion": "1.0", "id": f"48975575-6527595-{prefix}-{number}", "source": "/bench",
                "type": "contact.created", "time": at,
                "data": {"portal": "48975575", "change_source": "INTEGRATION",
                         "external_ids": {"bench": f"{prefix}-{number}"}},
            }),
        ))
        for number in range(first, first + requests)
    ]  # fmt: skip


async def run(options: Options) -> Result:
    """Measure it."""
    result = Result(KEY, TITLE, METHOD.format(connections=options.connections))
    if not has_wrk():
        result.skipped = WRK_MISSING
        return result
    seconds = options.seconds(8, 3)
    loads: list[tuple[Load, Load]] = []
    seen: list[Load] = []
    async with Ground() as ground:
        database, key = await ground.database("bench")
        url = await ground.service(
            "stage", database,
            BATON_SOURCES_DIR=str(SOURCES), BATON_SOURCE_SECRET_HUBSPOT=SECRET,
        )  # fmt: skip
        file = ground.directory / "requests"
        made = 0

        async def measure(lines: list[str], number: int) -> float:
            nonlocal made
            file.write_text("\n".join(lines))
            made += len(lines)
            load = await wrk_prepared(
                url, file, seconds=seconds if number else WARM_S, connections=options.connections
            )
            if load.requests > len(lines):
                raise RuntimeError(f"{load.requests} requests, {len(lines)} prepared: duplicates")
            seen.append(load)
            return load.rate

        def wanted(number: int) -> int:
            return round((seconds if number else WARM_S) * PER_SECOND)

        async def plain(number: int) -> float:
            prefix = secrets.token_hex(4)
            return await measure(events(key, prefix, made, wanted(number)), number)

        async def signed(number: int) -> float:
            rate = await measure(deliveries(url, made, wanted(number)), number)
            if number:
                loads.append((seen[-2], seen[-1]))
            else:
                await settle(database)
            return rate

        rounds = await alternate(options.times(), plain, signed, options.say)
        answered = sum(load.requests for load in seen)
        stored = await count(database, "SELECT count(*) FROM stage.events")
        result.notes += ground.complaints("stage")
    if stored < answered:
        raise RuntimeError(f"{answered} requests were answered 200, but only {stored} are stored")
    result.figures = [
        Figure("throughput", "requests/s", "the same event to /v1/events", rounds,
               target=0.7, goal=0.9),
        Figure("p99", "ms", "the same event to /v1/events",
               [(b.p99_ms, o.p99_ms) for b, o in loads], at_most=True),
    ]  # fmt: skip
    result.notes.append(f"{answered:,} requests answered 200, {stored:,} events stored.")
    return result
