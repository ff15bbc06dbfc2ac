"""The ways to a person: the console, e-mail over SMTP, and any Apprise URL of the roster.

The inbox is not here: the recorded alert is the inbox. A channel answers with an `Outcome` and never
raises; what it answers holds no secret and no address.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import smtplib
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from typing import Any, Literal

import apprise
import msgspec
import structlog

from services.contracts.team import Person
from services.notifier.redaction import label, scrub

MESSAGE_ID_DOMAIN = "baton.invalid"
"""Right-hand side of Message-IDs; ``.invalid`` is nobody's domain (RFC 2606)."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_log = structlog.get_logger("baton.notifier")

# Apprise's own lines name recipients and servers: they go to the delivery's reason, scrubbed.
logging.getLogger("apprise").propagate = False
logging.getLogger("apprise").addHandler(logging.NullHandler())


class Outcome(msgspec.Struct, frozen=True):
    """How one attempt ended. `permanent`: another attempt would end the same."""

    result: Literal["delivered", "failed", "skipped"]
    reason: str | None = None
    permanent: bool = False


NO_MAIL = "no mail server is set (BATON_SMTP_URL)"


class Letter(msgspec.Struct, frozen=True):
    """What is sent: an alert's text, under the alert's id."""

    alert_id: str
    subject: str
    body: str


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


class Channels:
    """Sends letters; `smtp_url` None means that e-mail is skipped. Raises ValueError if it is bad."""

    def __init__(
        self,
        smtp_url: str | None,
        timeout_s: float,
        sends_at_once_max: int,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._timeout_s = timeout_s
        self._environment = environment
        self._mail_url: str | None = None
        self._smtp: SmtpServer | None = None
        if smtp_url and smtp_url.partition("://")[0] in ("mailto", "mailtos"):
            self._mail_url = smtp_url
        elif smtp_url:
            self._smtp = smtp_server(smtp_url)
        self._threads = ThreadPoolExecutor(sends_at_once_max, thread_name_prefix="smtp")
        self._asset = apprise.AppriseAsset(
            app_id="Baton",
            app_desc="Baton",
            storage_mode="memory",
            allow_templates=False,
            service_timeout=timeout_s,
        )

    @property
    def no_mail(self) -> str | None:
        """Why no e-mail can be sent by this process; None when it can."""
        return NO_MAIL if self._smtp is None and self._mail_url is None else None

    def close(self) -> None:
        """Let the threads end; a send under way is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def send(self, channel: str, person: Person | None, letter: Letter) -> Outcome:
        """Send `letter` by the channel of that label to `person`."""
        if channel == "console":
            # No name and no text: what is printed here ends in log stores.
            _log.info("alert", alert_id=letter.alert_id, person=person.id if person else None)
            return Outcome("delivered")
        if person is None:
            return Outcome("skipped", "the person is not in the roster any more")
        try:
            async with asyncio.timeout(self._timeout_s):
                if channel == "email":
                    return await self._email(person, letter)
                for url in person.channels:
                    if label(url) == channel:
                        return await self._apprise(url, letter)
                return Outcome("skipped", "the channel is not in the roster any more")
        except TimeoutError:
            return Outcome("failed", f"no answer within {self._timeout_s:g} s")
        except Exception as error:  # a channel's bug must not stop the others
            return Outcome("failed", f"{type(error).__name__} in the channel")

    async def _email(self, person: Person, letter: Letter) -> Outcome:
        if not person.email:
            return Outcome("skipped", "the person has no e-mail address in the roster")
        if self._mail_url is not None:
            joint = "&" if "?" in self._mail_url else "?"
            to = urllib.parse.quote(person.email, safe="")
            return await self._notify(f"{self._mail_url}{joint}to={to}", letter)
        if self._smtp is None:
            return Outcome("skipped", NO_MAIL)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, _hand_in, self._smtp, person.email, letter, self._timeout_s
        )

    async def _apprise(self, url: str, letter: Letter) -> Outcome:
        missing = [n for n in _VARIABLE.findall(url) if n not in self._environment]
        if missing:
            return Outcome("failed", f"the environment lacks {', '.join(missing)}", permanent=True)
        return await self._notify(
            _VARIABLE.sub(lambda m: self._environment[m.group(1)], url), letter
        )

    async def _notify(self, url: str, letter: Letter) -> Outcome:
        notifier: Any = apprise.Apprise(asset=self._asset)
        # In a thread: the first one loads all of Apprise's services, which takes most of a second.
        if not await asyncio.to_thread(notifier.add, url):
            return Outcome("failed", "Apprise does not understand the URL", permanent=True)
        result = await notifier.async_notify(
            title=letter.subject, body=letter.body, body_format=apprise.NotifyFormat.TEXT,
            timeout=self._timeout_s, log_level=logging.WARNING,
        )  # fmt: skip
        if result:
            return Outcome("delivered")
        told = "; ".join(dict.fromkeys(entry.message for entry in result.logs()))
        return Outcome("failed", scrub(told, url) or "the service did not take it")


def mail(letter: Letter, sender: str, recipient: str) -> EmailMessage:
    """Make the e-mail of `letter`: plain text, the same Message-ID at every attempt.

    Raises ValueError when an address or the subject would break out of its header.
    """
    message = EmailMessage(policy=SMTP_POLICY)
    message["From"] = sender
    message["To"] = recipient
    message["Subject"] = letter.subject
    message["Message-ID"] = f"<{letter.alert_id}@{MESSAGE_ID_DOMAIN}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(letter.body)
    return message


def _hand_in(server: SmtpServer, recipient: str, letter: Letter, timeout_s: float) -> Outcome:
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
            smtp.send_message(message)
        finally:
            with contextlib.suppress(OSError, smtplib.SMTPException):
                smtp.quit()
    except smtplib.SMTPRecipientsRefused as error:
        code, answer = next(iter(error.recipients.values()))
        return _refused(code, answer, permanent=code >= 500)
    except smtplib.SMTPDataError as error:
        return _refused(error.smtp_code, error.smtp_error, permanent=error.smtp_code >= 500)
    except smtplib.SMTPResponseException as error:
        # About us (login, sender), not about this mail: it may be mended before the tries run out.
        return _refused(error.smtp_code, error.smtp_error, permanent=False)
    except (OSError, smtplib.SMTPException) as error:
        return Outcome("failed", scrub(f"mail server: {type(error).__name__}: {error}"))
    except ValueError as error:
        return Outcome("failed", scrub(f"not sendable: {error}"), permanent=True)
    return Outcome("delivered")


def _refused(code: int, answer: bytes | str, *, permanent: bool) -> Outcome:
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
    return Outcome("failed", scrub(f"mail server: {code} {text}"), permanent)
