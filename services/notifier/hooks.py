"""Slack, Microsoft Teams and signed webhooks: one HTTP POST a message, and what the answer means.

In the roster: ``slack+https://hooks.slack.com/services/...`` (an incoming webhook), ``slack+bot://TOKEN@CHANNEL``
(a bot: later alerts of a journey join its thread), ``teams+https://...`` (a workflow's webhook) and
``webhook+https://host/path#whsec_...`` (Standard Webhooks 1.0, signed with the secret after the ``#``).
"""

from __future__ import annotations

import base64
import urllib.parse
from datetime import datetime
from typing import Any, Literal, cast

import httpx
import msgspec
import standardwebhooks

from services.contracts.events import rfc3339
from services.notifier.letters import (
    RETRY_AFTER_S_UNSAID,
    Answer,
    Letter,
    Outcome,
    retry_after_s,
)

SLACK_API = "https://slack.com/api"
ANSWER_BYTES_MAX = 65_536
SECTION_CHARACTERS_MAX = 2900
"""Slack takes 3000 a section."""
SECTIONS_MAX = 40
BLOCK_ID_CHARACTERS_MAX = 255
OPTION_CHARACTERS_MAX = 75
REASON_CHARACTERS_MAX = 150
REASONS_MAX = 100
"""What Slack takes of a block's id, of an option's text and value, and of options."""
CARD_CHARACTERS_MAX = 20_000
"""Teams takes 28 KB a message."""
CONNECT_WITHIN_S = 5.0
SECRET_BYTES_MIN = 24
"""As Standard Webhooks asks for."""
WEBHOOK_TYPE = "baton.alert.v1"

# Slack's own words for what another attempt would not change; the rest is the channel's trouble.
_SLACK_FINAL = frozenset({
    "channel_not_found", "is_archived", "msg_too_long", "no_text", "invalid_blocks",
    "not_in_channel", "restricted_action", "user_not_found",
})  # fmt: skip


class Hook(msgspec.Struct, frozen=True):
    """A place to post to."""

    kind: Literal["slack", "slack-bot", "teams", "webhook"]
    url: str
    secret: str = ""
    channel: str = ""


def hook_of(url: str) -> Hook | None:
    """Read a channel's URL; None when it is not one of the kinds here."""
    scheme, _, rest = url.partition("://")
    kind, _, transport = scheme.lower().partition("+")
    if kind == "slack" and transport == "bot":
        token, _, where = rest.partition("@")
        channel, _, query = where.partition("?")
        api = dict(urllib.parse.parse_qsl(query)).get("api", SLACK_API)
        return Hook("slack-bot", f"{api.rstrip('/')}/chat.postMessage", token, channel)
    if transport not in ("https", "http"):
        return None
    address, _, secret = f"{transport}://{rest}".partition("#")
    if kind == "slack":
        return Hook("slack", address)
    if kind == "teams":
        return Hook("teams", address)
    if kind == "webhook":
        return Hook("webhook", address, secret)
    return None


async def post(
    client: httpx.AsyncClient, hook: Hook, letter: Letter, now: datetime, *, buttons: bool
) -> Outcome:
    """Post `letter`; the reason of the outcome may hold what the server said, not yet scrubbed."""
    try:
        body, headers = _request(hook, letter, now, buttons=buttons)
    except ValueError:
        return Outcome("failed", "the secret is not one of Standard Webhooks", permanent=True)
    try:
        async with client.stream(
            "POST", hook.url, content=body, headers=headers, follow_redirects=False,
            timeout=httpx.Timeout(client.timeout.read, connect=CONNECT_WITHIN_S),
        ) as answer:  # fmt: skip
            text = await _beginning(answer)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        return Outcome("failed", f"{type(error).__name__}: not reached", down=True)
    except httpx.TransportError as error:
        reason = f"{type(error).__name__}: no answer after it was sent"
        return Outcome("failed", reason, down=True, ambiguous=True)
    except (httpx.InvalidURL, httpx.HTTPError) as error:
        return Outcome("failed", f"{type(error).__name__}: bad address", permanent=True)
    return _judge(hook, answer, text)


async def _beginning(answer: httpx.Response) -> bytes:
    text = b""
    async for chunk in answer.aiter_bytes():
        text += chunk
        if len(text) > ANSWER_BYTES_MAX:
            break
    return text[:ANSWER_BYTES_MAX]


def _judge(hook: Hook, answer: httpx.Response, text: bytes) -> Outcome:
    status = answer.status_code
    wait_s = retry_after_s(answer.headers.get("retry-after"))
    said = f"{status} {text[:200].decode('utf-8', 'replace')}".strip()
    if status == 429:
        return Outcome("failed", said, retry_after_s=wait_s or RETRY_AFTER_S_UNSAID)
    if status >= 500 or status == 408:
        # A gateway does not know what became of what it passed on.
        ambiguous = status in (408, 502, 504)
        return Outcome("failed", said, down=True, ambiguous=ambiguous, retry_after_s=wait_s)
    if not 200 <= status < 300:
        return Outcome("failed", said, permanent=True)
    return _slack_answer(text) if hook.kind == "slack-bot" else Outcome("delivered")


def _slack_answer(text: bytes) -> Outcome:
    try:
        answer = cast("dict[str, Any]", msgspec.json.decode(text))
        if answer["ok"]:
            return Outcome("delivered", ref=str(answer.get("ts") or "") or None)
        error = str(answer.get("error"))
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError):
        return Outcome("failed", "Slack's answer cannot be read", down=True, ambiguous=True)
    if error == "ratelimited":
        return Outcome("failed", f"Slack: {error}", retry_after_s=RETRY_AFTER_S_UNSAID)
    final = error in _SLACK_FINAL
    return Outcome("failed", f"Slack: {error}", permanent=final, down=not final)


def _request(
    hook: Hook, letter: Letter, now: datetime, *, buttons: bool
) -> tuple[bytes, dict[str, str]]:
    headers = {"content-type": "application/json", "user-agent": "Baton"}
    if hook.kind == "webhook":
        body = msgspec.json.encode(webhook_payload(letter, now))
        headers["webhook-id"] = letter.alert_id
        headers["webhook-timestamp"] = str(int(now.timestamp()))
        if hook.secret:
            signer = standardwebhooks.Webhook(_secret(hook.secret))
            headers["webhook-signature"] = signer.sign(letter.alert_id, now, body.decode())
        return body, headers
    if hook.kind == "teams":
        return msgspec.json.encode(teams_card(letter)), headers
    message = slack_message(letter, buttons=buttons)
    if hook.kind == "slack-bot":
        message["channel"] = hook.channel
        message["metadata"] = {
            "event_type": "baton_alert", "event_payload": {"id": letter.alert_id}
        }  # fmt: skip
        if letter.thread is not None:
            message["thread_ts"] = letter.thread
        headers["authorization"] = f"Bearer {hook.secret}"
    return msgspec.json.encode(message), headers


def _secret(text: str) -> str:
    """Give a secret of Standard Webhooks; raises ValueError when it is none, or can be guessed."""
    key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    if len(key) < SECRET_BYTES_MIN:
        raise ValueError("too short")
    return text


def webhook_payload(letter: Letter, now: datetime) -> dict[str, Any]:
    """Give what the generic webhook posts."""
    return {
        "type": WEBHOOK_TYPE,
        "timestamp": rfc3339(now),
        "data": {
            "id": letter.alert_id, "alerts": list(letter.alert_ids), "lead_id": letter.lead_id,
            "subject": letter.subject, "body": letter.body, "link": letter.link,
            "digest": letter.is_digest, "repeat": letter.is_repeat,
        },
    }  # fmt: skip


def slack_message(letter: Letter, *, buttons: bool) -> dict[str, Any]:
    """Give a Slack message: blocks of plain text, which Slack reads as no mark-up, and buttons."""
    parts = _sections(letter)
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": _plain(letter.subject[:150])},
        *({"type": "section", "text": _plain(part)} for part in parts),
    ]
    if letter.is_repeat:
        blocks.append({"type": "context", "elements": [_plain(REPEAT)]})
    if letter.answer is not None:
        blocks.append(_answer_block(letter.answer, buttons=buttons))
    elements: list[dict[str, Any]] = []
    if buttons and not letter.is_digest:
        elements.append(_button("Got it", "baton_seen", value=letter.alert_id, style="primary"))
    if letter.link:
        elements.append(_button("Open", "baton_open", url=letter.link))
    if buttons and not letter.is_digest:
        elements.append(_button("Snooze 1 h", "baton_snooze", value=letter.alert_id))
    if elements:
        blocks.append({"type": "actions", "elements": elements})
    return {"text": letter.subject, "blocks": blocks, "unfurl_links": False}


def _answer_block(answer: Answer, *, buttons: bool) -> dict[str, Any]:
    """Give the block by which a handoff is answered; its id carries the token to `/slack/actions`."""
    if not buttons or len(answer.token) > BLOCK_ID_CHARACTERS_MAX:
        return {"type": "actions",
                "elements": [_button("Accept or reject", "baton_answer", url=answer.url)]}  # fmt: skip
    reasons = [r for r in answer.reasons if len(r) <= REASON_CHARACTERS_MAX][:REASONS_MAX]
    elements = [_button("Accept", "baton_accept", value="accept", style="primary")]
    if reasons:
        options = [{"text": _plain(_short(r)), "value": r} for r in reasons]
        elements.append({"type": "static_select", "action_id": "baton_reject",
                         "placeholder": _plain("Reject…"), "options": options})  # fmt: skip
    other = "Other reason" if reasons else "Reject…"
    elements.append(_button(other, "baton_answer", url=answer.url))
    return {"type": "actions", "block_id": answer.token, "elements": elements}


def _short(reason: str) -> str:
    if len(reason) <= OPTION_CHARACTERS_MAX:
        return reason
    return reason[: OPTION_CHARACTERS_MAX - 3].rstrip() + "..."


REPEAT = "Possibly a repeat: an attempt before this one got no answer."


def teams_card(letter: Letter) -> dict[str, Any]:
    """Give a message with an adaptive card, as a Teams workflow's webhook takes it."""
    body = letter.body
    if len(body) > CARD_CHARACTERS_MAX:
        body = body[:CARD_CHARACTERS_MAX].rpartition("\n")[0] + f"\n... all of it: {letter.link}"
    texts: list[dict[str, Any]] = [
        {"type": "TextBlock", "size": "Large", "weight": "Bolder", "wrap": True,
         "text": _unmarked(letter.subject)},
        *({"type": "TextBlock", "wrap": True, "spacing": "None", "text": _unmarked(line)}
          for line in body.split("\n") if line.strip()),
    ]  # fmt: skip
    if letter.is_repeat:
        texts.append({"type": "TextBlock", "isSubtle": True, "wrap": True, "text": REPEAT})
    actions = [
        {"type": "Action.OpenUrl", "title": title, "url": url}
        for title, url in (
            ("Accept or reject", letter.answer.url if letter.answer is not None else None),
            ("Open", letter.link),
            ("Got it", letter.seen_link),
        )
        if url
    ]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard", "version": "1.4", "body": texts, "actions": actions,
    }  # fmt: skip
    kind = "application/vnd.microsoft.card.adaptive"
    return {"type": "message", "attachments": [{"contentType": kind, "content": card}]}


def _sections(letter: Letter) -> list[str]:
    parts: list[str] = []
    part = ""
    for line in (text[:SECTION_CHARACTERS_MAX] for text in letter.body.split("\n")):
        if len(part) + len(line) + 1 > SECTION_CHARACTERS_MAX:
            parts.append(part)
            part = ""
        part += line + "\n"
    parts.append(part)
    parts = [p.strip() for p in parts if p.strip()]
    if len(parts) > SECTIONS_MAX:
        parts = [*parts[:SECTIONS_MAX], f"... and more; all of it: {letter.link}"]
    return parts


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text or " ", "emoji": False}


def _button(text: str, action: str, **more: str) -> dict[str, Any]:
    return {"type": "button", "text": _plain(text), "action_id": action, **more}


def _unmarked(text: str) -> str:
    """Give text without the Markdown that adaptive cards read."""
    for mark in ("\\", "*", "_", "[", "]", "#", "`", "~"):
        text = text.replace(mark, "\\" + mark)
    return text
