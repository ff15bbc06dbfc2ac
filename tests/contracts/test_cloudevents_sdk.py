"""The official CloudEvents SDK as a client of the service, over a real socket, in all three modes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from services.baton.embedded import EmbeddedPostgres
from tests.integration.stage import BATCHED, Stage, fresh_database, serving_stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHEN = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
ODD = {
    "spaces and quotes": 'Ada "the first" Lovelace',
    "percent": "100% of 50%25",
    "accents": "Zoë Müller, Åse",
    "another script": "リード 東京",
    "emoji": "👩‍💻 demo",
    "no-break space": "1\u00a0000 €",
    "backslash": "a\\b\\",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(postgres: EmbeddedPostgres) -> AsyncIterator[Stage]:
    """One stage service behind a real socket for the module."""
    with fresh_database(postgres) as url:
        async with serving_stage(url) as it:
            yield it


def told(id: str, data: Any = None, **more: Any) -> CloudEvent:
    """An event with every core attribute and two extensions, as the SDK builds it."""
    attributes = {
        "id": id, "source": "https://shop.example/forms?a=1", "type": "demo.requested",
        "time": WHEN, "subject": "form 7", "datacontenttype": "application/json",
        "dataschema": "https://shop.example/schemas/form.json", "region": "eu-west",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    } | more  # fmt: skip
    return CloudEvent(
        attributes, {"email": f"{id}@example.com", "note": "ü"} if data is None else data
    )


async def post(stage: Stage, message: HTTPMessage) -> dict[str, Any]:
    """Send what the SDK made, byte for byte, and give the event's result."""
    answer = await stage.client.post("/v1/events", content=message.body, headers=message.headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]


async def is_kept(stage: Stage, event: CloudEvent) -> None:
    """Assert that every attribute and the data of `event` are in the database."""
    attributes = dict(event.get_attributes())
    row = await stage.stored(attributes["source"], attributes["id"])
    assert row is not None
    kept = {name: row[name] for name in ("id", "source", "type", "time", "subject")}
    kept |= {"specversion": "1.0", "datacontenttype": "application/json"}
    kept |= {"dataschema": row["envelope"]["dataschema"], **row["envelope"]["extensions"]}
    assert kept == attributes
    assert row["data"] == event.get_data()


async def test_a_structured_event_is_kept_whole(stage: Stage) -> None:
    """`to_structured_event`: all attributes, extensions and data are stored."""
    event = told("structured")
    assert (await post(stage, to_structured_event(event)))["status"] == "applied"
    await is_kept(stage, event)


async def test_a_binary_event_is_kept_whole(stage: Stage) -> None:
    """`to_binary_event`: the same from headers and body."""
    event = told("binary")
    message = to_binary_event(event)
    assert message.headers["ce-subject"] == "form%207"
    assert (await post(stage, message))["status"] == "applied"
    await is_kept(stage, event)


async def test_a_batch_of_the_sdks_events_is_kept_whole(stage: Stage) -> None:
    """The SDK has no batch mode: its structured events in an array are one."""
    events = [told(f"batch-{n}", region=f"r{n}") for n in range(20)]
    body = b"[" + b",".join(to_structured_event(e).body for e in events) + b"]"
    answer = await stage.post(body, BATCHED)
    assert [r["status"] for r in answer.json()["results"]] == ["applied"] * 20
    for event in events:
        await is_kept(stage, event)


async def test_the_same_event_in_another_mode_is_a_repeat(stage: Stage) -> None:
    """(source, id) is the event, however it is sent."""
    event = told("modes")
    first = await post(stage, to_structured_event(event))
    again = await post(stage, to_binary_event(event))
    assert (first["status"], again["status"]) == ("applied", "duplicate")
    assert first["lead_id"] == again["lead_id"]


@pytest.mark.parametrize("value", ODD.values(), ids=ODD.keys())
async def test_odd_characters_arrive_in_both_modes(stage: Stage, value: str) -> None:
    """What the SDK percent-encodes into a header is the same text as in structured mode."""
    for mode, write in (("s", to_structured_event), ("b", to_binary_event)):
        event = told(
            f"{mode}-{value}", {"anonymous_id": f"{mode}-odd"}, subject=value, region=value
        )
        assert (await post(stage, write(event)))["status"] == "applied"
        await is_kept(stage, event)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"Zo\xc3\xab", "Zoë"),
        (b"Zo%c3%ab", "Zoë"),
        (b"%5A%6F%C3%AB", "Zoë"),
        (b'"a b"', "a b"),
        (b'"a \\"b\\" \\\\ %C3%AB"', 'a "b" \\ ë'),
        (b"Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        (b"50%", "50%"),
        (b'{"a": 1}', '{"a": 1}'),
    ],
)
async def test_header_values_are_read_as_the_binding_says(
    stage: Stage, sent: bytes, kept: str
) -> None:
    """Percent-encoding in either case or none, and the double quotes of older senders (3.1.3.2)."""
    id = sent.hex()
    message = to_binary_event(told(id))
    headers = [(k.encode(), v.encode()) for k, v in message.headers.items() if k != "ce-subject"]
    headers += [(b"ce-subject", sent), (b"authorization", f"Bearer {stage.key}".encode())]
    answer = await stage.client.post("/v1/events", content=message.body, headers=headers)
    assert answer.status_code == 200, answer.text
    row = await stage.stored("https://shop.example/forms?a=1", id)
    assert row is not None
    assert row["subject"] == kept


async def test_text_and_bytes_are_kept_as_data(stage: Stage) -> None:
    """Data that is no JSON object says nothing of a lead, and is kept with the event."""
    plain = told("plain", "Grüße", datacontenttype="text/plain")
    image = told("image", b"\x89PNG\x00", datacontenttype="image/png")
    for write, suffix in ((to_structured_event, "s"), (to_binary_event, "b")):
        for event, member, value in ((plain, "data", "Grüße"), (image, "data_base64", "iVBORwA=")):
            attributes = dict(event.get_attributes()) | {"id": f"{event.get_id()}-{suffix}"}
            result = await post(stage, write(CloudEvent(attributes, event.get_data())))
            assert result["status"] == "applied"
            assert result["lead_id"] is None
            row = await stage.stored(attributes["source"], attributes["id"])
            assert row is not None
            assert row["envelope"][member] == value
            assert row["envelope"]["datacontenttype"] == attributes["datacontenttype"]


async def test_an_event_of_the_older_version_is_refused_by_name(stage: Stage) -> None:
    """The SDK can still write 0.3; it is refused, not taken for 1.0."""
    from cloudevents.core.v03.event import CloudEvent as OldEvent

    old = OldEvent(
        {"id": "old", "source": "/old", "type": "demo.requested", "specversion": "0.3"}, {"a": 1}
    )
    for message in (to_structured_event(old), to_binary_event(old)):
        answer = await stage.client.post(
            "/v1/events", content=message.body, headers=message.headers
        )
        assert answer.status_code == 422, answer.text
        assert answer.json()["field"] == "specversion"
    assert await stage.stored("/old", "old") is None
