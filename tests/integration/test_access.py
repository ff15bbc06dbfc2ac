"""Who may do what: every route, every scope, revoked keys, browsers' cookies, and no secret in a log."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import pytest_asyncio
import structlog

from services.baton.embedded import EmbeddedPostgres
from services.contracts import access
from services.contracts.access import CACHE_S, SCOPES, SESSION_COOKIE
from services.contracts.logs import configure_logs
from services.stage_service.api.segment import CALLS
from services.stage_service.sources.bodies import UnreadableError, read_body
from tests.integration.stage import STRUCTURED, Stage, fresh_database, running_stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODY = str(uuid.UUID(int=0))
EVERYBODY = None
ROUTES: dict[tuple[str, str], str | None] = {
    ("get", "/livez"): EVERYBODY,
    ("get", "/readyz"): EVERYBODY,
    ("get", "/metrics"): EVERYBODY,
    ("post", "/v1/events"): "ingest",
    ("get", "/v1/leads"): "read",
    ("get", "/v1/leads/{id}"): "read",
    ("get", "/v1/leads/{id}/timeline"): "read",
    ("post", "/v1/leads/{id}/transitions"): "move",
    ("post", "/v1/leads/{id}/merge"): "move",
    ("post", "/v1/leads/{id}/unmerge"): "move",
    ("get", "/v1/accounts"): "read",
    ("get", "/v1/accounts/{domain}"): "read",
    ("get", "/v1/transitions"): "read",
    ("get", "/v1/transitions/stream"): "read",
    ("get", "/v1/transitions/export"): "read",
    ("get", "/v1/handoffs/feed"): "read",
    ("get", "/v1/handoffs/feed/stream"): "read",
    ("get", "/v1/handoffs/feed/export"): "read",
    ("get", "/v1/funnel"): "read",
    ("get", "/v1/funnel/durations"): "read",
    ("get", "/v1/leads/{id}/why"): "read",
    ("get", "/v1/playbooks"): "read",
    **{(method, f"/v1/playbooks{path}"): scope for method, path, scope in (
        ("post", "", "admin"), ("get", "/{name}", "read"), ("put", "/{name}", "admin"),
        ("post", "/{name}/rollback", "admin"), ("get", "/{name}/versions", "read"),
        ("get", "/{name}/versions/{version}", "read"),
        ("get", "/{name}/versions/{version}/diff", "read"), ("get", "/scheduled", "read"),
        ("delete", "/scheduled/{id}", "admin"), ("post", "/validate", "read"),
        ("post", "/diff", "read"), ("post", "/simulate", "admin"), ("get", "/simulations", "read"),
        ("get", "/simulations/{id}", "read"), ("get", "/simulations/{id}/result", "read"),
        ("delete", "/simulations/{id}", "admin"),
    )},
    ("post", "/webhooks/{source}"): "ingest",
    **{("post", f"/v1/{call}"): "ingest" for call in sorted(set(CALLS.values()))},
    ("get", "/v1/quarantine"): "admin",
    ("get", "/v1/quarantine/{id}"): "admin",
    ("post", "/v1/quarantine/replay"): "admin",
    ("post", "/v1/quarantine/{id}/replay"): "admin",
    ("post", "/v1/quarantine/{id}/discard"): "admin",
    ("get", "/v1/people"): "admin",
    ("get", "/v1/people/{id}"): "admin",
    ("put", "/v1/people/{id}"): "admin",
    ("delete", "/v1/people/{id}"): "admin",
    ("post", "/v1/people/import"): "admin",
    ("get", "/v1/audit"): "admin",
    ("get", "/v1/audit/export"): "admin",
    ("post", "/v1/people/{id}/leave"): "admin",
    ("post", "/v1/leads/{id}/assign"): "move",
    ("get", "/v1/leads/{id}/routing"): "read",
    ("get", "/v1/handoffs"): "read",
    ("get", "/v1/handoffs/numbers"): "read",
    ("get", "/v1/handoffs/{id}"): "read",
    ("post", "/v1/handoffs/{id}/accept"): "move",
    ("post", "/v1/handoffs/{id}/reject"): "move",
    ("get", "/asyncapi.json"): EVERYBODY,
    **{(method, f"/v1/subscriptions{path}"): "admin" for method, path in (
        ("get", ""), ("post", ""), ("get", "/{id}"), ("patch", "/{id}"), ("delete", "/{id}"),
        ("post", "/{id}/pause"), ("post", "/{id}/resume"), ("post", "/{id}/test"),
        ("post", "/{id}/resend"), ("post", "/{id}/replay"),
        ("get", "/{id}/deliveries"), ("get", "/{id}/deliveries/{delivery_id}"),
        ("post", "/{id}/deliveries/{delivery_id}/resend"),
        ("post", "/{id}/deliveries/{delivery_id}/skip"),
        ("get", "/{id}/secrets"), ("post", "/{id}/secrets/rotate"),
        ("delete", "/{id}/secrets/{secret_id}"),
    )},
}  # fmt: skip
"""Every route and the scope it asks for. A route that is missing here fails the test below."""

GUARDED = [(*route, scope) for route, scope in ROUTES.items() if scope is not EVERYBODY]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(postgres: EmbeddedPostgres) -> AsyncIterator[Stage]:
    """One stage service for the module."""
    with fresh_database(postgres) as url:
        async with running_stage(url) as it:
            yield it


def event(**data: Any) -> bytes:
    """A valid event as the body of a structured request."""
    return json.dumps({
        "specversion": "1.0", "id": str(uuid.uuid4()), "source": "/access", "type": "page.viewed",
        "data": data,
    }).encode()  # fmt: skip


async def ask(stage: Stage, method: str, path: str, **headers: str) -> httpx.Response:
    """Ask `path` with these headers only (``_`` for ``-``): no key unless one is given."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    content = b""
    if path == "/v1/events":
        content, sent["content-type"] = event(), STRUCTURED
    elif method == "post":
        content = json.dumps({"to": "nurture", "reason": "why"}).encode()
        sent["content-type"] = "application/json"
    url = re.sub(r"\{(\w+_)?id\}", NOBODY, path).replace("{source}", "generic")
    if path.endswith("/stream"):
        url += "?after=-1"  # answered 422 to whoever may ask: the stream itself has no end
    transport = httpx.ASGITransport(stage.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=stage.url) as client:
        return await client.request(method.upper(), url, content=content, headers=sent)


async def test_the_table_names_every_route(stage: Stage) -> None:
    """A new route has to say here who may use it."""
    paths = stage.app.openapi()["paths"]
    assert {
        (method, path) for path, methods in paths.items() for method in methods
    } == ROUTES.keys()


@pytest.mark.parametrize(
    ("method", "path"), [route for route, scope in ROUTES.items() if scope is EVERYBODY]
)
async def test_the_platform_needs_no_key(stage: Stage, method: str, path: str) -> None:
    """Probes and metrics answer without a key."""
    assert (await ask(stage, method, path)).status_code == 200


@pytest.mark.parametrize(("method", "path", "scope"), GUARDED)
async def test_a_route_asks_for_its_scope_and_no_other(
    stage: Stage, method: str, path: str, scope: str
) -> None:
    """No key or a wrong one: 401; a key with every other scope: 403; the scope or admin: let in."""
    before = await stage.count()
    assert (await ask(stage, method, path)).status_code == 401
    wrong = await ask(stage, method, path, authorization="Bearer bat_000000000000_wrong")
    assert wrong.status_code == 401
    _, others = await stage.new_key(*(s for s in SCOPES if s not in (scope, "admin")))
    refused = await ask(stage, method, path, authorization=f"Bearer {others}")
    assert refused.status_code == 403
    assert refused.json()["code"] == "not-allowed"
    assert await stage.count() == before
    for enough in (scope, "admin"):
        _, key = await stage.new_key(enough)
        answer = await ask(stage, method, path, authorization=f"Bearer {key}")
        assert answer.status_code in (200, 404, 415, 422, 428), answer.text


async def test_a_key_with_the_right_id_and_another_secret_is_refused(stage: Stage) -> None:
    """The id of a key is no secret and opens nothing."""
    id, key = await stage.new_key("read")
    other = key[:-1] + ("A" if key[-1] != "A" else "B")
    assert key.startswith(f"bat_{id}_")
    for token in (other, f"bat_{id}_", f"bat_{id}_x", key.removeprefix("bat_"), key + "x"):
        answer = await ask(stage, "get", "/v1/leads", authorization=f"Bearer {token}")
        assert answer.status_code == 401, token
    answer = await ask(stage, "get", "/v1/leads", authorization=f"bearer {key}")
    assert answer.status_code == 200


@pytest.mark.parametrize(("method", "path"), [("get", "/v1/leads"), ("post", "/v1/events")])
async def test_a_revoked_key_stops_when_the_cache_ends(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    """A key that is revoked after it was used lives on for `CACHE_S` at most."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(access, "time", clock)
    id, key = await stage.new_key("read", "ingest")
    assert (await ask(stage, method, path, authorization=f"Bearer {key}")).status_code == 200
    assert await access.revoke_key(stage.connection, id)
    assert not await access.revoke_key(stage.connection, id)
    clock.now += CACHE_S + 0.001
    assert (await ask(stage, method, path, authorization=f"Bearer {key}")).status_code == 401


async def test_an_expired_key_is_refused(stage: Stage) -> None:
    """The end of a key's life counts without anybody revoking it."""
    for lifetime_s, status in ((-1.0, 401), (60.0, 200)):
        _, key = await access.create_key(stage.connection, "short", ["read"], lifetime_s=lifetime_s)
        answer = await ask(stage, "get", "/v1/leads", authorization=f"Bearer {key}")
        assert answer.status_code == status


async def test_an_unknown_scope_makes_no_key(stage: Stage) -> None:
    """A typing mistake does not make a key that can do nothing, or everything."""
    for scopes in (["reed"], [], ["read", "root"]):
        with pytest.raises(ValueError, match="unknown scope"):
            await access.create_key(stage.connection, "wrong", scopes)


async def test_a_login_link_works_once_and_is_no_key(stage: Stage) -> None:
    """The one-time token opens a session the first time, and no route by itself."""
    _, login = await access.create_key(
        stage.connection, "ada", ["read"], kind="login", lifetime_s=60
    )
    answer = await ask(stage, "get", "/v1/leads", authorization=f"Bearer {login}")
    assert answer.status_code == 401
    session = await access.redeem_login(stage.connection, login)
    assert session is not None
    answer = await ask(stage, "get", "/v1/leads", cookie=f"{SESSION_COOKIE}={session}")
    assert answer.status_code == 200
    assert await access.redeem_login(stage.connection, login) is None
    for wrong in ("", "x", session, login + "x"):
        assert await access.redeem_login(stage.connection, wrong) is None


async def test_who_guesses_login_links_has_to_wait(database_url: str) -> None:
    """Wrong one-time tokens are counted like wrong keys."""
    async with running_stage(database_url, rate_limit_failures="1/h burst 2") as stage:
        codes = [
            (await stage.client.post("/login", data={"token": f"bat_{n}_x"})).status_code
            for n in range(3)
        ]
        assert codes == [403, 403, 429]
        _, login = await access.create_key(
            stage.connection, "ada", ["read"], kind="login", lifetime_s=60
        )
        answer = await stage.client.post("/login", data={"token": login})
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert "text/html" in answer.headers["content-type"]


@pytest.mark.parametrize(("public_url", "secure"), [("https://baton.example", True), (None, False)])
async def test_the_session_is_secure_where_people_use_tls(
    database_url: str, public_url: str | None, secure: bool
) -> None:
    """Also when the proxy with TLS is not one that is believed."""
    async with running_stage(database_url, public_url=public_url) as stage:
        _, login = await access.create_key(
            stage.connection, "ada", ["read"], kind="login", lifetime_s=60
        )
        answer = await stage.client.post("/login", data={"token": login})
    assert answer.status_code == 303
    assert ("; secure" in answer.headers["set-cookie"].lower()) is secure


async def _session(stage: Stage, *scopes: str) -> str:
    _, token = await access.create_key(
        stage.connection, "ada", scopes, kind="session", lifetime_s=60
    )
    return f"{SESSION_COOKIE}={token}"


@pytest.mark.parametrize(
    ("headers", "may"),
    [
        ({}, True),
        ({"sec_fetch_site": "same-origin", "origin": "http://stage.test"}, True),
        ({"sec_fetch_site": "none"}, True),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "same-site"}, False),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "https://stage.test.evil.example"}, False),
        ({"origin": "https://evil-stage.test"}, False),
        ({"origin": "http://stage.test:8080"}, False),
        ({"origin": "null"}, False),
        ({"sec_fetch_site": "cross-site", "origin": "http://stage.test"}, False),
        ({"sec_fetch_site": "same-origin", "origin": "https://evil.example"}, False),
    ],
)
async def test_a_browsers_cookie_counts_only_from_our_own_pages(
    stage: Stage, headers: dict[str, str], may: bool
) -> None:
    """A POST that another site makes a browser send is nobody's, whatever its cookie says."""
    cookie = await _session(stage, "move")
    answer = await ask(stage, "post", "/v1/leads/{id}/transitions", cookie=cookie, **headers)
    assert answer.status_code == (404 if may else 401)


async def test_a_session_has_its_scopes_and_no_more(stage: Stage) -> None:
    """A cookie reads with ``read`` and does not move without ``move``."""
    cookie = await _session(stage, "read")
    assert (await ask(stage, "get", "/v1/leads", cookie=cookie)).status_code == 200
    moved = await ask(stage, "post", "/v1/leads/{id}/transitions", cookie=cookie)
    assert moved.status_code == 403


async def test_a_cookie_sends_no_events(stage: Stage) -> None:
    """Events come from tools, with a key in the header: no page can make a browser send one."""
    cookie = await _session(stage, *SCOPES)
    assert (await ask(stage, "post", "/v1/events", cookie=cookie)).status_code == 401


async def test_a_wrong_key_in_the_header_is_not_mended_by_a_cookie(stage: Stage) -> None:
    """Whoever sends a key is judged by it alone."""
    cookie = await _session(stage, "read")
    for authorization in ("Bearer wrong", "Basic dTpw", "Bearer"):
        answer = await ask(stage, "get", "/v1/leads", cookie=cookie, authorization=authorization)
        assert answer.status_code == 401, authorization


async def test_a_strange_cookie_is_nobodys(stage: Stage) -> None:
    """A cookie's quoted octal escapes can say NUL, which no header can: it is 401 like any other."""
    for value in ('"bat_\\000a_b"', '"bat_a_\\000"', '"bat_\\351_\\351"', "x" * 5000, ""):
        answer = await ask(stage, "get", "/v1/leads", cookie=f"{SESSION_COOKIE}={value}")
        assert answer.status_code == 401, value


async def test_the_database_holds_no_key_that_could_be_used(stage: Stage) -> None:
    """Of a key only a hash is stored, and no list gives it out."""
    id, key = await stage.new_key("read")
    secret = key.rpartition("_")[2] if key.count("_") == 2 else key.split("_", 2)[2]
    row = await stage.connection.fetchrow(
        "SELECT k::text AS t FROM access.keys k WHERE id = $1", id
    )
    assert row is not None
    assert secret not in row["t"]
    listed = next(k for k in await access.list_keys(stage.connection) if k["id"] == id)
    assert "hash" not in listed
    assert secret not in str(listed)


@pytest.fixture(params=["json", "console"])
def log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What this process logs, at the lowest level, configured as the services configure it."""
    written = io.StringIO()
    before = structlog.get_config()
    context = structlog.contextvars.get_contextvars()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {
        name: it.level
        for name, it in logging.root.manager.loggerDict.items()
        if isinstance(it, logging.Logger)
    }
    monkeypatch.setattr(sys, "stderr", written)
    configure_logs(request.param, "debug", "stage")
    # Or the modules' loggers would write here for the rest of the run.
    structlog.configure(**(structlog.get_config() | {"cache_logger_on_first_use": False}))
    yield written
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**context)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)


async def test_no_log_line_has_a_secret_or_personal_data(
    database_url: str, log: io.StringIO
) -> None:
    """Good and bad requests, with good and bad keys: no key, no e-mail, no name in any log line (I11)."""
    async with running_stage(database_url) as stage:
        secrets = await _busy(stage)
        structlog.get_logger("test").info("test.reached_the_log")
    _holds_none_of(log.getvalue(), secrets)
    assert "test.reached_the_log" in log.getvalue()


async def test_a_mistake_of_ours_logs_no_secret_either(
    database_url: str, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback tells where, not what: the values of variables hold keys and people (I11)."""
    async with running_stage(database_url) as stage:
        secrets = await _busy(stage)

        async def broken(*_: Any) -> None:
            raise RuntimeError("made to fail")

        monkeypatch.setattr(stage.house.lane, "_apply", broken)
        monkeypatch.setattr("services.stage_service.api.reads.reads.list_leads", broken)
        answer = await stage.post(event(email="ada.secret@example.com", name="Ada Secret"))
        assert answer.status_code == 500
        answer = await stage.client.get("/v1/leads?email=ada.secret@example.com")
        assert answer.status_code == 500
        _holds_none_of(answer.text, [*secrets, "made to fail", "Traceback"])
    written = log.getvalue()
    assert "made to fail" in written
    assert "lane.event_failed" in written
    assert "http.failed" in written
    _holds_none_of(written, secrets)


async def _busy(stage: Stage) -> list[str]:
    """Send and ask all sorts of things; give what must never be seen in a log."""
    person = {"email": "ada.secret@example.com", "name": "Ada Secret"}
    sent = await stage.post(event(**person))
    assert sent.status_code == 200
    lead_id = sent.json()["results"][0]["lead_id"]
    wrong = "bat_0123456789ab_wrongsecretwrongsecret"
    bad = [
        await stage.post(event(email="ada.secret@example.com@x")),
        await stage.post(event(**person)[:-1]),
        await stage.post(event(**person), authorization=f"Bearer {wrong}"),
        await stage.client.get("/v1/leads", headers={"authorization": f"Bearer {wrong}"}),
        await stage.client.get("/v1/leads?email=ada.secret@example.com&limit=0"),
        await stage.client.get("/v1/nothing?email=ada.secret@example.com"),
    ]
    good = [
        await stage.client.get("/v1/leads?email=ada.secret@example.com"),
        await stage.client.get(f"/v1/leads/{lead_id}/timeline"),
        await stage.client.post(
            f"/v1/leads/{lead_id}/transitions", json={"to": "nurture", "reason": "Ada Secret said"}
        ),
    ]
    assert {a.status_code for a in bad} == {400, 401, 404, 422}
    assert {a.status_code for a in good} == {200}
    for answer in bad:
        _holds_none_of(answer.text, [stage.key, wrong])
    return [stage.key, stage.key.split("_", 2)[2], wrong, "ada.secret", "Ada Secret"]


def _holds_none_of(text: str, secrets: list[str]) -> None:
    plain = text.replace("\n", "").replace("│", "")  # boxes break lines in the middle of a word
    assert [s for s in secrets if s in text or s.replace(" ", "") in plain.replace(" ", "")] == []


async def test_what_cannot_be_a_key_is_not_remembered(stage: Stage) -> None:
    """A header may be long: a cache of ten thousand of them would be an attacker's to fill."""
    gatekeeper = stage.house.gatekeeper
    for token in ("bat_a_" + "x" * 60_000, "y" * 60_000, "bat_", ""):
        answer = await ask(stage, "get", "/v1/leads", authorization=f"Bearer {token}")
        assert answer.status_code == 401
    assert max(map(len, gatekeeper._known), default=0) < 200


async def test_a_body_that_cannot_be_read_is_not_in_the_log(log: io.StringIO) -> None:
    """Nor in what the libraries log that read it."""
    canary = "ada.lovelace@example.com"
    for body in (
        f'--B\r\nContent-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: {canary}'
        "\r\n\r\n1\r\n--B--\r\n",
        f"<a>{canary}",
    ):
        with contextlib.suppress(UnreadableError):
            read_body(
                ["json", "multipart", "xml"], body.encode(), "multipart/form-data; boundary=B"
            )
    assert canary not in log.getvalue()


async def test_no_route_reads_more_than_it_takes(stage: Stage) -> None:
    """Nor of those that the framework serves, which reads a body before it asks who sent it."""
    for path in (f"/v1/leads/{NOBODY}/transitions", "/v1/quarantine/replay", "/login"):
        for headers in ({}, {"authorization": f"Bearer {stage.key}", "idempotency-key": '"large"'}):
            read = 0

            async def flood() -> AsyncIterator[bytes]:
                nonlocal read
                for _ in range(64):
                    read += 256 * 1024
                    yield b"x" * (256 * 1024)

            transport = httpx.ASGITransport(stage.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=stage.url) as client:
                answer = await client.post(
                    path, content=flood(), headers=headers | {"content-type": "application/json"}
                )
            assert answer.status_code in (401, 413), (path, answer.text)
            if path != "/login" and answer.status_code == 413:
                assert answer.json()["code"] == "too-large"
            assert read <= 2 * 1024 * 1024, path
