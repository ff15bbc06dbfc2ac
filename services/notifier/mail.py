"""E-mail over SMTP: one plain-text mail a message, handed in with TLS and a login, in a thread.

A mail has the same Message-ID at every attempt, so that mail programs show a repeat once, and names the
mails of the same journey before it, so that they stand in one thread (RFC 5322, 3.6.4).
"""

from __future__ import annotations

import contextlib
import smtplib
import ssl
import time
import urllib.parse
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from typing import Literal

import msgspec

from services.notifier.letters import Letter, Outcome, text_of
from services.notifier.redaction import scrub

MESSAGE_ID_DOMAIN = "baton.invalid"
"""Right-hand side of Message-IDs; ``.invalid`` is nobody's domain (RFC 2606)."""
REFERENCES_MAX = 10


class SmtpServer(msgspec.Struct, frozen=True):
    """Where e-mail is handed in."""

    host: str
    port: int
    sender: str
    tls: Literal["starttls", "tls", "no"]
    user: str | None = None
    password: str | None = None


def smtp_server(url: str) -> SmtpServer:
    """Read ``smtp://user:pass@host:port?from=...&tls=starttls|tls|no`` (``smtps``: tls).

    Without ``tls`` it is starttls, and without ``from`` the user, or ``baton@`` and the host. Raises
    ValueError; its text does not repeat the URL.
    """
    parts = urllib.parse.urlsplit(url)
    options = dict(urllib.parse.parse_qsl(parts.query))
    tls = options.get("tls", "tls" if parts.scheme == "smtps" else "starttls")
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
        raise ValueError("BATON_SMTP_URL: write it as smtp://user:pass@host:port?from=a@b.example")
    if tls not in ("starttls", "tls", "no"):
        raise ValueError("BATON_SMTP_URL: tls is one of starttls, tls, no")
    user = urllib.parse.unquote(parts.username) if parts.username else None
    sender = options.get("from") or (user if user and "@" in user else f"baton@{parts.hostname}")
    if not sender.isprintable() or "@" not in sender:
        raise ValueError("BATON_SMTP_URL: from is not an e-mail address")
    return SmtpServer(
        parts.hostname,
        parts.port or {"tls": 465, "starttls": 587, "no": 25}[tls],
        sender,
        tls,
        user,
        urllib.parse.unquote(parts.password) if parts.password else None,
    )


def mail(letter: Letter, sender: str, recipient: str) -> EmailMessage:
    """Make the e-mail of `letter`: plain text, the same Message-ID at every attempt.

    Raises ValueError when an address or the subject would break out of its header.
    """
    message = EmailMessage(policy=SMTP_POLICY)
    message["From"] = sender
    message["To"] = recipient
    message["Subject"] = letter.subject
    message["Message-ID"] = _message_id(letter.alert_id)
    if letter.earlier:
        message["In-Reply-To"] = _message_id(letter.earlier[-1])
        shown = (*letter.earlier[:1], *letter.earlier[1:][-REFERENCES_MAX:])
        message["References"] = " ".join(_message_id(id) for id in shown)
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text_of(letter))
    return message


def _message_id(id: str) -> str:
    return f"<{id}@{MESSAGE_ID_DOMAIN}>"


def hand_in(server: SmtpServer, recipient: str, letter: Letter, timeout_s: float) -> Outcome:
    """Hand `letter` in for `recipient`; blocks for about `timeout_s` at most, and never raises."""
    handed_over = False
    deadline = time.monotonic() + timeout_s
    try:
        message = mail(letter, server.sender, recipient)
        context = ssl.create_default_context() if server.tls != "no" else None
        if server.tls == "tls":
            smtp = smtplib.SMTP_SSL(server.host, server.port, timeout=timeout_s, context=context)
        else:
            smtp = smtplib.SMTP(server.host, server.port, timeout=timeout_s)
        try:
            if server.tls == "starttls":
                smtp.starttls(context=context)
            if server.user and server.password:
                smtp.login(server.user, server.password)
            if time.monotonic() > deadline:
                # Whoever waited has given up and will try again: do not send it behind their back.
                return Outcome("failed", "the mail server is slow")
            if smtp.sock is not None:
                smtp.sock.settimeout(max(deadline - time.monotonic(), 0.1))
            handed_over = True
            smtp.send_message(message)
        finally:
            with contextlib.suppress(OSError, smtplib.SMTPException):
                smtp.quit()
    except smtplib.SMTPRecipientsRefused as error:
        code, answer = next(iter(error.recipients.values()))
        return _refused(code, answer, permanent=code >= 500)
    except smtplib.SMTPDataError as error:
        return _refused(error.smtp_code, error.smtp_error, permanent=error.smtp_code >= 500)
    except smtplib.SMTPSenderRefused as error:
        # 552: the mail is larger than the server takes (RFC 1870). Else it is about our sender.
        large = error.smtp_code == 552
        return _refused(error.smtp_code, error.smtp_error, permanent=large, down=not large)
    except smtplib.SMTPNotSupportedError as error:
        # STARTTLS or a login that the server does not know is about all mails, an address about this one.
        reason = scrub(f"mail server: {error}", recipient)
        return Outcome("failed", reason, permanent=handed_over, down=not handed_over)
    except smtplib.SMTPResponseException as error:
        # About us (login, sender), not about this mail: it may be mended before the tries run out.
        return _refused(error.smtp_code, error.smtp_error, permanent=False, down=True)
    except (OSError, smtplib.SMTPException) as error:
        reason = scrub(f"mail server: {type(error).__name__}: {error}")
        return Outcome("failed", reason, down=True, ambiguous=handed_over)
    except ValueError as error:
        return Outcome("failed", scrub(f"not sendable: {error}"), permanent=True)
    return Outcome("delivered")


def _refused(code: int, answer: bytes | str, *, permanent: bool, down: bool = False) -> Outcome:
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
    return Outcome("failed", scrub(f"mail server: {code} {text}"), permanent, down)
