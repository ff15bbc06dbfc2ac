"""The buttons in Slack: what was pressed is done, and whoever pressed is told what came of it.

Slack's signature over the raw bytes says who may act. Slack waits three seconds for an answer: an answer to
a handoff is passed on to the stage service within less, and what came of it follows to Slack's
``response_url``, which is asked nowhere but at Slack. A press that comes twice has one effect.
"""

from __future__ import annotations

import hashlib
import hmac
import urllib.parse
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import httpx
import msgspec
import structlog
from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.background import BackgroundTask

from services.contracts.audit import Actor
from services.contracts.events import rfc3339
from services.notifier import attention, reads, store
from services.notifier.access import House, house
from services.notifier.errors import InvalidRequestError, NotAuthenticatedError, NotFoundError
from services.notifier.harmless import one_line

SLACK_WITHIN_S = 300
"""How old Slack's request may be (its documentation: five minutes)."""
SLACK_BYTES_MAX = 262_144
SNOOZE = timedelta(hours=1)
STAGE_WITHIN_S = 2.5
"""Slack shows a warning where it gets no answer within three seconds."""
REPLY_WITHIN_S = 5.0
PRESSED_MAX = 5
SAID_CHARACTERS_MAX = 300
TRY_AGAIN = "Not done: Baton does not answer. Try it again."

_DEEDS = {"baton_accept": "accept", "baton_reject": "reject"}
_STATES = {"accept": "accepted", "reject": "rejected"}
_ALERT_DEEDS = frozenset({"baton_seen", "baton_snooze"})
_log = structlog.get_logger("baton.notifier")

router = APIRouter()


class Pressed(msgspec.Struct, frozen=True):
    """A button that was pressed: on an alert, or on a handoff (`token`), by whom."""

    action: str
    who: str
    alert_id: UUID | None = None
    token: str = ""
    reason: str | None = None


@router.post("/slack/actions", include_in_schema=False)
async def slack_action(request: Request) -> Response:
    """Do what a button in Slack says, when Slack signed the request, and say there what came of it.

    Raises NotFoundError when no signing secret is set, NotAuthenticatedError for a wrong or old signature.
    """
    parts = house(request)
    if not parts.slack_secret:
        raise NotFoundError("there is no such page", remedy="Set BATON_SLACK_SIGNING_SECRET.")
    body = await _body(request)
    timestamp = request.headers.get("x-slack-request-timestamp", "")
    signature = request.headers.get("x-slack-signature", "")
    if not slack_signed(parts.slack_secret, timestamp, signature, body, parts.now()):
        raise NotAuthenticatedError(
            "the signature is not Slack's, or older than five minutes",
            remedy="Set BATON_SLACK_SIGNING_SECRET to the app's signing secret.",
        )
    pressed, reply_url = _read(body)
    said = [await _do(parts, each) for each in pressed]
    after = None
    if said and reply_url is not None and is_slacks(reply_url, parts.slack_reply_url):
        after = BackgroundTask(_reply, parts, reply_url, " ".join(said))
    return PlainTextResponse("", background=after)


def slack_signed(secret: str, timestamp: str, signature: str, body: bytes, now: datetime) -> bool:
    """Tell whether Slack signed `body` (its scheme v0), and not long ago."""
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        return False
    if abs(int(timestamp) - now.astimezone(UTC).timestamp()) > SLACK_WITHIN_S:
        return False
    signed = b"v0:" + timestamp.encode() + b":" + body
    expected = "v0=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace"))


def is_slacks(url: str, allowed: str) -> bool:
    """Tell whether `url` is at the very place of `allowed`: scheme, host and port."""
    try:
        asked, known = urllib.parse.urlsplit(url), urllib.parse.urlsplit(allowed)
        places = [(p.scheme, p.hostname, p.port) for p in (asked, known)]
    except ValueError:
        return False
    return places[0] == places[1] and "@" not in asked.netloc and "\\" not in url


def _read(body: bytes) -> tuple[list[Pressed], str | None]:
    """Read which buttons of ours were pressed, and where Slack takes a reply."""
    try:
        fields = urllib.parse.parse_qs(body.decode(), max_num_fields=20)
        payload = cast("dict[str, Any]", msgspec.json.decode(fields["payload"][0]))
        who = one_line(f"slack:{payload['user']['id']}", 64)
        actions = payload.get("actions", ())[:PRESSED_MAX]
        pressed = [p for p in (_pressed(a, who) for a in actions) if p is not None]
        reply_url = payload.get("response_url")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InvalidRequestError(
            "the payload is not that of a button of ours", field="payload",
            remedy="Point Slack's interactivity at this address only.",
        ) from error  # fmt: skip
    return pressed, reply_url if isinstance(reply_url, str) else None


def _pressed(action: dict[str, Any], who: str) -> Pressed | None:
    name = str(action.get("action_id"))
    if name in _ALERT_DEEDS:
        return Pressed(name, who, UUID(str(action["value"])))
    if name not in _DEEDS:
        return None
    reason = action["selected_option"]["value"] if name == "baton_reject" else None
    return Pressed(
        name, who, None, str(action["block_id"]), str(reason) if reason is not None else None
    )


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > SLACK_BYTES_MAX:
            raise InvalidRequestError(
                f"more than {SLACK_BYTES_MAX} bytes", field="payload", remedy="Send less."
            )
    return body


async def _do(parts: House, pressed: Pressed) -> str:
    """Do what was pressed; gives what came of it, in a sentence."""
    if pressed.alert_id is None:
        return await _answer(parts, pressed)
    alert = await reads.get_alert(parts.pool, pressed.alert_id)
    if alert is None:
        return "There is no such alert."
    now = parts.now()
    by = Actor(pressed.who, via="slack")
    if alert["acknowledged_at"] is not None:
        return f"Acknowledged already by {alert['acknowledged_by']}."
    if pressed.action == "baton_seen":
        await store.acknowledge(parts.pool, pressed.alert_id, by, now)
        return "Acknowledged: nothing more is sent about it."
    until = now + SNOOZE
    if await attention.snooze(parts.pool, pressed.alert_id, until, by, now, parts.tries):
        return f"Snoozed until {rfc3339(until.replace(microsecond=0))}."
    return "Acknowledged already: it does not come again."


async def _answer(parts: House, pressed: Pressed) -> str:
    """Pass an answer to a handoff on to the stage service; gives what it said."""
    deed = _DEEDS[pressed.action]
    form = {"answer": deed, "actor": pressed.who}
    if pressed.reason is not None:
        form["reason"] = pressed.reason
    token = urllib.parse.quote(pressed.token, safe="")
    try:
        answer = await parts.client.post(
            f"{parts.stage_url.rstrip('/')}/answer/{token}", data=form,
            headers={"accept": "application/json"}, timeout=STAGE_WITHIN_S,
        )  # fmt: skip
    except httpx.HTTPError as error:  # its text may hold the address, and so the token
        _log.warning("slack.unanswered", reason=type(error).__name__)
        return TRY_AGAIN
    if answer.status_code == 200:
        # Of two presses at the same moment both may be told what the first one did.
        if _member(answer, "state") in (None, _STATES[deed]):
            return (
                "Accepted." if deed == "accept" else f"Rejected: {one_line(pressed.reason or '')}"
            )
        return f"Answered already: {_member(answer, 'state')}."
    detail = _member(answer, "detail")
    if answer.status_code == 409:
        return f"Answered already: {detail}" if detail else "It was answered already."
    if answer.status_code == 410:
        return "The time to answer by this button is over: open the lead to answer."
    if 400 <= answer.status_code < 500 and answer.status_code != 429:
        return f"Not done: {detail or 'the button is not valid any more'}"
    _log.warning("slack.unanswered", status=answer.status_code)
    return TRY_AGAIN


def _member(answer: httpx.Response, name: str) -> str | None:
    """Give a text of the answer's JSON, as one harmless line; None when there is none."""
    try:
        value = cast("dict[str, Any]", msgspec.json.decode(answer.content)).get(name)
    except (msgspec.DecodeError, AttributeError, UnicodeDecodeError):
        return None
    return one_line(value, SAID_CHARACTERS_MAX) if isinstance(value, str) else None


async def _reply(parts: House, url: str, said: str) -> None:
    """Say in Slack, to who pressed, what came of it; the deed stands whether that arrives or not."""
    text = one_line(said, SAID_CHARACTERS_MAX)
    plain = {"type": "plain_text", "text": text, "emoji": False}
    message = {
        "response_type": "ephemeral", "replace_original": False, "text": text,
        "blocks": [{"type": "section", "text": plain}],
    }  # fmt: skip
    try:
        answer = await parts.client.post(url, json=message, timeout=REPLY_WITHIN_S)
        if not answer.is_success:
            _log.warning("slack.unheard", status=answer.status_code)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _log.warning("slack.unheard", reason=type(error).__name__)
