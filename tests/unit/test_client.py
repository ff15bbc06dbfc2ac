"""`baton.client` without a Baton: what it sends, when it tries again, what it makes of odd answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from baton.client import (
    AnswerError,
    AsyncClient,
    Client,
    CursorAheadError,
    Event,
    RefusedError,
    UnreachableError,
    WebhookError,
    WebhookEvent,
    verify_webhook,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()
Answer = httpx.Response | Exception


class Wire:
    """Stands for the network: gives the answers in turn and remembers requests and pauses."""

    def __init__(self, *answers: Answer | Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    def client(self, **options: Any) -> Client:
        """A client on this wire."""
        return Client(
            "http://baton.test", "bat_key", transport=httpx.MockTransport(self._answer),
            sleep=self.pauses.append, **options,
        )  # fmt: skip


def taken(request: httpx.Request) -> httpx.Response:
    """Answer as Baton does when it takes all."""
    results = [
        {"id": e["id"], "source": e["source"], "status": "applied", "lead_id": "l", "transitions": []}
        for e in json.loads(request.content)
    ]  # fmt: skip
    return httpx.Response(200, json={"results": results})


def test_an_event_is_sent_again_with_the_same_id() -> None:
    """Whatever fails for the moment; the pauses grow, and Retry-After is waited for."""
    wire = Wire(
        httpx.ConnectError("refused"), httpx.ReadTimeout("late"), httpx.Response(500),
        httpx.Response(503, headers={"retry-after": "7"}),
        httpx.Response(429, headers={"retry-after": "Wed, 21 Oct"}), taken,
    )  # fmt: skip
    event = Event("demo.requested", "/website", {"email": "ada@example.com"})
    result = wire.client().send(event)
    assert (result.status, result.id, result.lead_id) == ("applied", event.id, "l")
    assert len({r.content for r in wire.requests}) == 1
    assert len(wire.pauses) == 5
    assert wire.pauses[3] >= 7
    assert all(0 < p <= 20 for p in wire.pauses)
    assert json.loads(wire.requests[0].content)[0] == event.cloud_event()
    assert wire.requests[0].headers["authorization"] == "Bearer bat_key"


def test_it_gives_up_in_the_end() -> None:
    wire = Wire(httpx.ConnectError("refused"))
    with pytest.raises(UnreachableError):
        wire.client(give_up_s=30).send(Event("a", "/b", {}))
    assert 10 < sum(wire.pauses) <= 30


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_is_refused_is_not_sent_again(status: int) -> None:
    problem = {"code": "not-allowed", "detail": "no", "field": "key", "remedy": "Use another."}
    wire = Wire(httpx.Response(status, json=problem))
    with pytest.raises(RefusedError) as refused:
        wire.client().send(Event("a", "/b", {}))
    assert (refused.value.status, refused.value.code, refused.value.field) == (
        status, "not-allowed", "key",
    )  # fmt: skip
    assert "bat_key" not in str(refused.value)
    assert len(wire.requests) == 1


def test_a_batch_of_which_nothing_is_valid_is_results_too() -> None:
    error = {"code": "missing-attribute", "field": "type"}
    result = {"id": "1", "source": "/b", "status": "rejected", "lead_id": None, "error": error}
    wire = Wire(httpx.Response(422, json={"code": "missing-attribute", "results": [result]}))
    found = wire.client().send({"specversion": "1.0", "id": "1", "source": "/b"})
    assert (found.status, found.is_kept, found.error) == ("rejected", False, error)


def test_many_events_are_batches() -> None:
    """Of 500, and of less than a request may have."""
    wire = Wire(taken)
    client = wire.client()
    events = [Event("a", "/b", {}, id=str(n)) for n in range(1200)]
    assert [r.id for r in client.send_many(events)] == [e.id for e in events]
    assert [len(json.loads(r.content)) for r in wire.requests] == [500, 500, 200]
    wire.requests.clear()
    client.send_many(Event("a", "/b", {"note": "ä" * 200_000}) for _ in range(5))
    assert [len(json.loads(r.content)) for r in wire.requests] == [2, 2, 1]
    assert client.send_many([]) == []


@pytest.mark.parametrize(
    "event",
    [{"type": "a"}, Event("a", "/b", {}, time=datetime(2026, 1, 1)),  # noqa: DTZ001
     Event("a", "/b", {"n": float("nan")})],
)  # fmt: skip
def test_an_event_that_cannot_be_sent_is_told_at_once(event: Any) -> None:
    wire = Wire(taken)
    with pytest.raises(ValueError):
        wire.client().send(event)
    assert wire.requests == []


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(200, text="<html>"), httpx.Response(200, json=[]), httpx.Response(204),
     httpx.Response(200, content=b"[" * 100_000)],
)  # fmt: skip
def test_what_is_no_answer_is_said(answer: httpx.Response) -> None:
    """A proxy's page in the place of Baton's answer."""
    with pytest.raises(AnswerError):
        Wire(answer).client().lead("x")


def item(position: int, **more: Any) -> dict[str, Any]:
    return {"position": position, "type": "baton.stage.transitioned.v1", **more}


def pages(*found: tuple[list[int], str | None]) -> list[httpx.Response]:
    return [
        httpx.Response(200, json={"items": [item(p) for p in items], "next_cursor": cursor})
        for items, cursor in found
    ]


def test_a_feed_is_read_to_its_end() -> None:
    """The cursor moves with what is done, and past what the filters left out."""
    wire = Wire(*pages(([1, 4], "6"), ([], "9"), ([10], "10"), ([], None)))
    feed = wire.client().transitions(after=0, types=["baton.stage.*"], stage="mql")
    seen: list[tuple[int, int]] = []
    for it in feed:
        seen.append((it.position, feed.cursor))
    assert seen == [(1, 0), (4, 1), (10, 9)]
    assert feed.cursor == 10
    assert [r.url.params["after"] for r in wire.requests] == ["0", "6", "9", "10"]
    assert wire.requests[0].url.params["type"] == "baton.stage.*"
    assert wire.requests[0].url.params["stage"] == "mql"
    assert wire.requests[0].url.params["wait"] == "0"
    with pytest.raises(StopIteration):
        next(feed)


def test_following_outlives_outages() -> None:
    """For longer than other calls try; it asks with a wait, and goes on at its place."""
    outage = [httpx.ConnectError("refused") for _ in range(50)]
    wire = Wire(
        *pages(([1], "1"), ([], None)), *outage, httpx.Response(502), *pages(([2], "2"), ([], None))
    )
    feed = wire.client(give_up_s=1).transitions(follow=True)
    assert [next(feed).position, next(feed).position] == [1, 2]
    assert wire.requests[-1].url.params["after"] == "1"
    assert float(wire.requests[-1].url.params["wait"]) > 0
    assert sum(wire.pauses) > 100


def test_a_moment_is_the_start_only_once() -> None:
    wire = Wire(*pages(([], "41"), ([42], "42"), ([], None)))
    since = datetime(2026, 1, 1, tzinfo=UTC)
    assert [i.position for i in wire.client().transitions(since=since)] == [42]
    assert wire.requests[0].url.params["since"] == since.isoformat()
    assert "since" not in wire.requests[1].url.params
    assert wire.requests[1].url.params["after"] == "41"


def test_a_place_that_is_ahead_is_an_error_of_its_own() -> None:
    problem = {"code": "cursor-ahead", "detail": "ahead", "last_position": 12}
    with pytest.raises(CursorAheadError) as ahead:
        next(Wire(httpx.Response(409, json=problem)).client().transitions(99, follow=True))
    assert ahead.value.last_position == 12


@pytest.mark.parametrize(
    "page",
    [{"items": []}, {"items": [{"type": "x"}], "next_cursor": "1"},
     {"items": [], "next_cursor": "x"}, {"items": [item(5), item(5)], "next_cursor": "5"},
     {"items": [item(6), item(5)], "next_cursor": "6"}, {"items": [item(3)], "next_cursor": "3"},
     {"items": [item(9)], "next_cursor": "8"}],
)  # fmt: skip
def test_a_page_that_is_none_loses_no_place(page: dict[str, Any]) -> None:
    with pytest.raises(AnswerError):
        next(Wire(httpx.Response(200, json=page)).client().transitions(after=4))


async def test_the_asynchronous_client_does_the_same() -> None:
    wire = Wire(httpx.Response(503, headers={"retry-after": "3"}), taken, *pages(([1], "1")))

    async def pause(seconds: float) -> None:
        wire.pauses.append(seconds)

    transport = httpx.MockTransport(wire._answer)
    async with AsyncClient("http://baton.test", "k", transport=transport, sleep=pause) as client:
        assert (await client.send(Event("a", "/b", {}))).status == "applied"
        assert wire.pauses[0] >= 3
        async for each in client.transitions(follow=True):
            assert each.position == 1
            break


# Webhooks

NOW = datetime.now(UTC)
BODY = json.dumps(
    {"specversion": "1.0", "id": "m1", "type": "baton.stage.transitioned.v1", "source": "baton",
     "subject": "lead-1", "time": "2026-01-01T00:00:00Z", "data": {"to": "mql", "n": "ä"}},
    ensure_ascii=False,
).encode()  # fmt: skip
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = (
    "whpk_"
    + base64.b64encode(KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
)


def signed(secret: str = SECRET, body: bytes = BODY, at: datetime = NOW) -> dict[str, str]:
    """The headers of a delivery, as the standard's own library signs it."""
    return {
        "Webhook-Id": "m1", "Webhook-Timestamp": str(int(at.timestamp())),
        "Webhook-Signature": Webhook(secret).sign("m1", at, body.decode()),
    }  # fmt: skip


def asymmetric(body: bytes = BODY, at: datetime = NOW) -> str:
    """A ``v1a`` signature."""
    content = f"m1.{int(at.timestamp())}.".encode() + body
    return "v1a," + base64.b64encode(KEY.sign(content)).decode()


def verified(body: bytes, headers: dict[str, str], secrets: Any) -> WebhookEvent:
    """Verify at the moment at which it was signed, however long the tests take."""
    return verify_webhook(body, headers, secrets, now=NOW)


def test_a_delivery_is_an_event() -> None:
    event = verified(BODY, signed(), SECRET)
    assert (event.id, event.type, event.subject, event.data["to"]) == (
        "m1", "baton.stage.transitioned.v1", "lead-1", "mql",
    )  # fmt: skip
    assert event.time == datetime(2026, 1, 1, tzinfo=UTC)
    assert event.sent_at == NOW.replace(microsecond=0)


def test_both_secrets_hold_while_one_replaces_the_other() -> None:
    both = signed() | {
        "Webhook-Signature": f"{signed(OTHER)['Webhook-Signature']} {signed()['Webhook-Signature']}"
    }
    for secrets in (SECRET, OTHER, [OTHER, SECRET], (SECRET, PUBLIC)):
        assert verified(BODY, both, secrets).id == "m1"
    assert verified(BODY, signed(), [OTHER, SECRET]).id == "m1"
    with pytest.raises(WebhookError):
        verified(BODY, signed(), [OTHER])


def test_asymmetric_signatures() -> None:
    headers = signed() | {"Webhook-Signature": asymmetric()}
    assert verified(BODY, headers, PUBLIC).id == "m1"
    mixed = signed() | {"Webhook-Signature": f"{signed(OTHER)['Webhook-Signature']} {asymmetric()}"}
    assert verified(BODY, mixed, [SECRET, PUBLIC]).id == "m1"
    for wrong in (asymmetric(BODY + b" "), "v1a,", "v1a,A", asymmetric().replace("v1a", "v1")):
        with pytest.raises(WebhookError):
            verified(BODY, signed() | {"Webhook-Signature": wrong}, PUBLIC)


@pytest.mark.parametrize("minutes", [-6, 6])
def test_an_old_delivery_is_refused(minutes: int) -> None:
    """And one from the future."""
    with pytest.raises(WebhookError):
        verified(BODY, signed(at=NOW + timedelta(minutes=minutes)), SECRET)
    assert verify_webhook(BODY, signed(), SECRET, now=NOW + timedelta(minutes=4.9)).id == "m1"


GOOD = signed()


@given(
    body=st.one_of(st.just(BODY), st.binary()),
    headers=st.dictionaries(
        st.one_of(st.sampled_from(sorted(GOOD)), st.text()),
        st.one_of(st.sampled_from(sorted(GOOD.values())), st.text(), st.just("v1,"),
                  st.just("9" * 400), st.just("v1a," + "A" * 88)),
    ),
)  # fmt: skip
def test_forged_deliveries_raise_one_error(body: bytes, headers: dict[str, str]) -> None:
    """Whatever is sent: WebhookError, or it is the delivery that was signed."""
    try:
        verify_webhook(body, headers, [SECRET, PUBLIC], now=NOW)
    except WebhookError:
        return
    assert body == BODY
    assert {GOOD[name] for name in GOOD} <= set(headers.values())


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b"[" * 100_000, b'{"data": [1]}', b"{}"])
def test_a_signed_body_need_not_be_an_event(body: bytes) -> None:
    try:
        event = verified(body, signed(body=body), SECRET)
    except WebhookError:
        return
    assert (event.id, event.data) == ("m1", {})


@pytest.mark.parametrize("secrets", [[], "", "whsec_", "whsec_!", "whpk_AAAA", "whsk_AAAA"])
def test_a_secret_that_is_none_is_the_receivers_mistake(secrets: Any) -> None:
    with pytest.raises(ValueError):
        verified(BODY, signed(), secrets)
