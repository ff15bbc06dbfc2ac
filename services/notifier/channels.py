"""The ways to a person: the console, e-mail, Slack, Teams, webhooks, and any Apprise URL of the roster.

The inbox is not here: the recorded alert is the inbox. A channel answers with an `Outcome` and never
raises; what it answers holds no secret and no address.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import urllib.parse
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

import apprise
import httpx
import msgspec
import structlog

from services.contracts.preferences import OWN_VARIABLES
from services.contracts.team import Person
from services.contracts.tls import authorities
from services.notifier import hooks
from services.notifier.letters import Letter, Outcome
from services.notifier.mail import SmtpServer, hand_in, smtp_server
from services.notifier.redaction import label, scrub

__all__ = ["NO_MAIL", "Channels", "Letter", "Outcome"]

CONNECTIONS_MAX = 256

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_log = structlog.get_logger("baton.notifier")

# Apprise's own lines name recipients and servers: they go to the delivery's reason, scrubbed.
logging.getLogger("apprise").propagate = False
logging.getLogger("apprise").addHandler(logging.NullHandler())


NO_MAIL = "no mail server is set (BATON_SMTP_URL)"


class Channels:
    """Sends letters; `smtp_url` None means that e-mail is skipped. Raises ValueError if it is bad."""

    def __init__(
        self,
        smtp_url: str | None,
        timeout_s: float,
        sends_at_once_max: int,
        environment: Mapping[str, str] = os.environ,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        buttons: bool = False,
    ) -> None:
        self._timeout_s = timeout_s
        self._environment = environment
        self._mail_url: str | None = None
        self._smtp: SmtpServer | None = None
        if smtp_url and smtp_url.partition("://")[0] in ("mailto", "mailtos"):
            self._mail_url = smtp_url
        elif smtp_url:
            self._smtp = smtp_server(smtp_url)
        # Mail has threads of its own: those of Apprise may all wait for one service that hangs.
        self._threads = ThreadPoolExecutor(sends_at_once_max, thread_name_prefix="channel")
        self._mail_threads = ThreadPoolExecutor(sends_at_once_max, thread_name_prefix="mail")
        self._now = now
        self._buttons = buttons
        self._client: httpx.AsyncClient | None = None
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
        for threads in (self._threads, self._mail_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    async def aclose(self) -> None:
        """Let threads and connections go."""
        self.close()
        if self._client is not None:
            await self._client.aclose()

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
                for url in person.all_channels:
                    if label(url) == channel:
                        return await self._by_url(url, letter)
                return Outcome("skipped", "the channel is not in the roster any more")
        except TimeoutError:
            reason = f"no answer within {self._timeout_s:g} s"
            return Outcome("failed", reason, down=True, ambiguous=True)
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
            self._mail_threads, hand_in, self._smtp, person.email, letter, self._timeout_s
        )

    async def _by_url(self, url: str, letter: Letter) -> Outcome:
        names = _VARIABLE.findall(url)
        own = [n for n in names if n.startswith(OWN_VARIABLES)]
        if own:
            reason = f"a channel may not hold {', '.join(own)}: it is Baton's own"
            return Outcome("failed", reason, permanent=True)
        missing = [n for n in names if n not in self._environment]
        if missing:
            return Outcome("failed", f"the environment lacks {', '.join(missing)}", permanent=True)
        url = _VARIABLE.sub(lambda m: self._environment[m.group(1)], url)
        hook = hooks.hook_of(url)
        if hook is None:
            return await self._notify(url, letter)
        if self._client is None:
            limits = httpx.Limits(max_connections=CONNECTIONS_MAX)
            self._client = httpx.AsyncClient(
                timeout=self._timeout_s, limits=limits, verify=authorities()
            )
        outcome = await hooks.post(self._client, hook, letter, self._now(), buttons=self._buttons)
        if outcome.reason is None:
            return outcome
        # A service may repeat what it was sent.
        secrets = (letter.answer.url, letter.answer.token) if letter.answer is not None else ()
        return msgspec.structs.replace(outcome, reason=scrub(outcome.reason, url, *secrets))

    async def _notify(self, url: str, letter: Letter) -> Outcome:
        notifier: Any = apprise.Apprise(asset=self._asset)
        # Threads of our own: Apprise's wait in the loop's few, where a slow service would hold up all.
        # The first one loads all of its services, which takes most of a second.
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(self._threads, notifier.add, url):
            return Outcome("failed", "Apprise does not understand the URL", permanent=True)
        result: Any = await loop.run_in_executor(
            self._threads,
            partial(
                notifier.notify, title=letter.subject, body=letter.body,
                body_format=apprise.NotifyFormat.TEXT, timeout=self._timeout_s,
                log_level=logging.WARNING,
            ),
        )  # fmt: skip
        if result:
            return Outcome("delivered")
        told = "; ".join(dict.fromkeys(entry.message for entry in result.logs()))
        reason = scrub(told, url) or "the service did not take it"
        return Outcome("failed", reason, down=True)
