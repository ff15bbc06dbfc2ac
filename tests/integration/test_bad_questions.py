"""Bad questions, bad moves and bad keys: each is refused by a problem that names what is wrong."""

from __future__ import annotations

import uuid

import httpx
import pytest

from tests.integration.nearly_events import JSON, event, is_problem, lives_on, nested, stage, text
from tests.integration.stage import STRUCTURED, Stage, running_stage

__all__ = ["stage"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401), ("", 401), ("Bearer", 401), ("Bearer ", 401), ("Bearer x", 401),
        ("Basic dTpw", 401), ("Bearer bat_0123456789ab_wrong", 401), ("Bearer bat__", 401),
        ("Bearer bat_ä_ö", 401), ("Bearer " + "x" * 10_000, 401),
    ],
)  # fmt: skip
async def test_without_a_valid_key_nothing_is_taken(
    stage: Stage, authorization: str | None, status: int
) -> None:
    """No key, a wrong one or another scheme: 401 as a problem, on events and elsewhere."""
    before = await stage.count()
    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    transport = httpx.ASGITransport(stage.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=stage.url) as client:
        for answer in (
            await client.post(
                "/v1/events", content=text(),
                headers=[*headers, (b"content-type", STRUCTURED.encode())],
            ),
            await client.get("/v1/leads", headers=headers),
        ):  # fmt: skip
            is_problem(answer, status, None)
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert await stage.count() == before


async def test_a_revoked_key_and_one_without_the_scope_are_refused(stage: Stage) -> None:
    """A key revoked before its first use is 401, one that may only read is 403."""
    id, revoked = await stage.new_key("ingest")
    await stage.connection.execute("UPDATE access.keys SET revoked_at = now() WHERE id = $1", id)
    answer = await stage.post(text(), authorization=f"Bearer {revoked}")
    is_problem(answer, 401, None)
    _, reader = await stage.new_key("read")
    answer = await stage.post(text(), authorization=f"Bearer {reader}")
    is_problem(answer, 403, None)
    await lives_on(stage)


async def test_without_the_database_the_answer_is_503(database_url: str) -> None:
    """A key that cannot be looked up is no reason to call the key wrong, or ourselves broken."""
    async with running_stage(database_url) as stage:
        stage.house.pool.terminate()
        answer = await stage.post(text())
        is_problem(answer, 503, None)
        assert answer.headers["retry-after"] == "2"


READS = [
    ("/v1/leads?q=%00", 422, "q"),
    ("/v1/leads?q=" + "x" * 201, 422, "q"),
    ("/v1/leads?owner=%00", 422, "owner"),
    ("/v1/leads?email=%00", 422, "email"),
    ("/v1/leads?email=nobody", 422, "email"),
    ("/v1/leads?playbook=%00", 404, "playbook"),
    ("/v1/leads?playbook=nonsense", 404, "playbook"),
    ("/v1/leads?stage=nonsense", 422, "stage"),
    ("/v1/leads?stage=%00", 422, "stage"),
    ("/v1/leads?cursor=nonsense", 422, "cursor"),
    ("/v1/leads?cursor=%00", 422, "cursor"),
    ("/v1/leads?limit=0", 422, "limit"),
    ("/v1/leads?limit=-1", 422, "limit"),
    ("/v1/leads?limit=1000000000", 422, "limit"),
    ("/v1/leads?limit=ten", 422, "limit"),
    ("/v1/leads/nonsense", 404, "id"),
    ("/v1/leads/%00", 404, "id"),
    ("/v1/leads/%ED%A0%80", 404, "id"),
    (f"/v1/leads/{uuid.UUID(int=0)}", 404, "id"),
    ("/v1/leads/nonsense/timeline", 404, "id"),
    (f"/v1/leads/{uuid.UUID(int=0)}/timeline", 404, "id"),
    ("/v1/transitions?after=-1", 422, "after"),
    ("/v1/transitions?after=9223372036854775808", 422, "after"),
    ("/v1/transitions?after=x", 422, "after"),
    ("/v1/transitions?limit=0", 422, "limit"),
    ("/v1/transitions?limit=1000000000", 422, "limit"),
    ("/v1/transitions/stream?after=-1", 422, "after"),
    ("/v1/transitions/stream?after=4611686018427387904", 409, "after"),
    ("/v1/transitions?after=4611686018427387904", 409, "after"),
    ("/v1/transitions/export?after=4611686018427387904", 409, "after"),
    ("/v1/handoffs/feed?after=4611686018427387904", 409, "after"),
    ("/v1/transitions?wait=61", 422, "wait"),
    ("/v1/transitions?wait=nan", 422, "wait"),
    ("/v1/transitions?since=yesterday", 422, "since"),
    ("/v1/transitions?since=9999-12-31T23:59:59-10:00", 422, "since"),
    ("/v1/transitions?since=2026-01-01T00:00:00Z&after=1", 422, "since"),
    ("/v1/transitions?until=0001-01-01T00:00:00%2B10:00", 422, "until"),
    ("/v1/transitions?type=baton.stage.moved.v1", 422, "type"),
    ("/v1/handoffs/feed?type=baton.stage.*", 422, "type"),
    ("/v1/transitions?lead_id=ada", 422, "lead_id"),
    ("/v1/transitions?to=mql&stage=sql", 422, "to"),
    ("/v1/transitions?from=%00", 422, "from"),
    ("/v1/transitions?owner=", 422, "owner"),
    ("/v1/funnel?playbook=nonsense", 404, "playbook"),
    ("/v1/funnel?playbook=%00", 404, "playbook"),
    ("/v1/funnel?from=yesterday", 422, "from"),
    ("/v1/funnel?from=1e400", 422, "from"),
    ("/v1/funnel?from=0001-01-01T00:00:00%2B10:00", 422, "from"),
    ("/v1/funnel?to=9999-12-31T23:59:59-10:00", 422, "to"),
    ("/v1/funnel?by=a%27b", 422, "by"),
    ("/v1/funnel?by=%00", 422, "by"),
    ("/v1/funnel?from_stage=nonsense&to_stage=sql", 422, "from_stage"),
    ("/v1/funnel?from_stage=lead&to_stage=nonsense", 422, "to_stage"),
    ("/v1/funnel/durations", 422, "from_stage"),
    ("/v1/funnel/durations?from_stage=lead&to_stage=%00", 422, "to_stage"),
    ("/v1/funnel/durations?from_stage=lead&to_stage=sql&to=9999-12-31T23:59:59-10:00", 422, "to"),
    ("/v1/nonsense", 404, None),
]


@pytest.mark.parametrize(("path", "status", "field"), READS)
async def test_a_bad_question_is_refused_by_name(
    stage: Stage, path: str, status: int, field: str | None
) -> None:
    """Bad parameters of the read side get a problem that names them, never a 500."""
    answer = await stage.client.get(path, follow_redirects=True)
    is_problem(answer, status, field)


@pytest.mark.parametrize("id", [b"\xb2", b"x", b"-1", b"1.5", b"9" * 19])
async def test_a_last_event_id_that_is_no_position_is_refused(stage: Stage, id: bytes) -> None:
    """A reader that lost its place is told so; ``\u00b2`` is a digit to Python, but no number."""
    answer = await stage.client.get("/v1/transitions/stream", headers=[(b"last-event-id", id)])
    is_problem(answer, 422, "last-event-id")


MOVES = [
    ("empty body", b"", 422, "body"),
    ("broken JSON", b"{", 422, "body"),
    ("not UTF-8", b"\xff", 400, "body"),
    ("too deep", nested(100_000), 400, "body"),
    ("an array", b"[]", 422, "body"),
    ("deep stage", b'{"reason":"why","to":' + nested(850) + b"}", 422, "to"),
    ("no stage", b'{"reason":"why"}', 422, "to"),
    ("no reason", b'{"to":"nurture"}', 422, "reason"),
    ("blank reason", b'{"to":"nurture","reason":" \\n "}', 422, "reason"),
    ("empty reason", b'{"to":"nurture","reason":""}', 422, "reason"),
    ("reason of 10 kB", b'{"to":"nurture","reason":"%s"}' % (b"x" * 10_000), 422, "reason"),
    ("reason a number", b'{"to":"nurture","reason":1}', 422, "reason"),
    ("NUL in reason", b'{"to":"nurture","reason":"a\\u0000b"}', 422, "reason"),
    ("surrogate in reason", b'{"to":"nurture","reason":"\\ud800"}', 422, "reason"),
    ("unknown stage", b'{"to":"nonsense","reason":"why"}', 422, "to"),
    ("NUL in stage", b'{"to":"\\u0000","reason":"why"}', 422, "to"),
    ("unknown playbook", b'{"to":"nurture","reason":"why","playbook":"x"}', 404, "playbook"),
    ("NUL in key", b'{"to":"nurture","reason":"why","key":"\\u0000"}', 422, "key"),
    ("blank key", b'{"to":"nurture","reason":"why","key":" "}', 422, "key"),
    ("empty key", b'{"to":"nurture","reason":"why","key":""}', 422, "key"),
    ("unknown field", b'{"to":"nurture","reason":"why","sneaky":1}', 422, "sneaky"),
    ("force a word", b'{"to":"nurture","reason":"why","force":"perhaps"}', 422, "force"),
]


@pytest.mark.parametrize(
    ("body", "status", "field"), [pytest.param(*rest, id=name) for name, *rest in MOVES]
)
async def test_a_bad_move_is_refused_by_name(
    stage: Stage, body: bytes, status: int, field: str
) -> None:
    """A move by hand that cannot be gets a problem that names the field; the lead stays, no event."""
    [made] = await stage.send(event(data={"anonymous_id": str(uuid.uuid4())}))
    before = await stage.count()
    answer = await stage.client.post(
        f"/v1/leads/{made['lead_id']}/transitions", content=body, headers={"content-type": JSON}
    )
    is_problem(answer, status, field)
    assert await stage.count() == before


@pytest.mark.parametrize("id", ["nonsense", "%00", str(uuid.UUID(int=0))])
async def test_nobody_cannot_be_moved(stage: Stage, id: str) -> None:
    """An id that no lead has is a 404, whatever it looks like."""
    wish = {"to": "nurture", "reason": "why"}
    is_problem(await stage.client.post(f"/v1/leads/{id}/transitions", json=wish), 404, "id")


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/v1/leads"), ("PUT", "/v1/transitions"), ("PATCH", "/v1/funnel")],
)
async def test_a_wrong_method_is_a_problem_too(stage: Stage, method: str, path: str) -> None:
    """The framework's own errors come as problem+json."""
    is_problem(await stage.client.request(method, path), 405, None)
