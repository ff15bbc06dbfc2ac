"""Channels against real servers: SMTP (aiosmtpd), HTTP (what an Apprise URL posts to)."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import ssl
import subprocess
from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path

import msgspec
import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from services.contracts.team import Person
from services.notifier.channels import Channels
from services.notifier.letters import Answer, Letter
from services.notifier.redaction import label

ANA = Person("ana", "Ana", "ana@baton.example", channels=("email",))
LETTER = Letter(
    "018f0000-0000-7000-8000-000000000001", "Yours now: Zoë (Acme) is at SQL", "Zoë\n.\nBye\n"
)
# One of Apprise's services imports a module that Python 3.13 has dropped.
pytestmark = pytest.mark.filterwarnings(
    "ignore:'imghdr' is deprecated:DeprecationWarning",
    # aiosmtpd's own.
    "ignore:Session.login_data is deprecated:DeprecationWarning",
    "ignore:Requiring AUTH while not requiring TLS:UserWarning",
)


class Mailbox:
    """A mail server's handler that keeps what it takes; `answers` are refusals, in turn."""

    def __init__(self) -> None:
        self.mails: list[tuple[str | None, list[str], EmailMessage]] = []
        self.recipient_answers: list[str] = []
        self.logins: list[tuple[bytes, bytes]] = []

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take the recipient, or give the next refusal."""
        if self.recipient_answers:
            return self.recipient_answers.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Keep the mail."""
        assert isinstance(envelope.content, bytes)
        parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        self.mails.append((envelope.mail_from, list(envelope.rcpt_tos), parsed))
        return "250 taken"

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object
    ) -> AuthResult:
        """Accept one user."""
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=data == LoginPassword(b"baton", b"p/w"), handled=False)


@pytest.fixture
def mailbox() -> Mailbox:
    """An empty mailbox."""
    return Mailbox()


@pytest.fixture
async def smtp_port(mailbox: Mailbox) -> AsyncIterator[int]:
    """A mail server's port on this machine."""

    def protocol() -> SMTP:
        return SMTP(
            mailbox,
            authenticator=mailbox.authenticate,
            auth_require_tls=False,
            auth_exclude_mechanism=["CRAM-MD5"],
            hostname="mail.example",
        )

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@contextlib.asynccontextmanager
async def opened(
    smtp_url: str | None, timeout_s: float = 10, environment: dict[str, str] | None = None
) -> AsyncIterator[Channels]:
    """Channels, closed afterwards."""
    channels = Channels(smtp_url, timeout_s, 2, environment or {})
    yield channels
    await channels.aclose()


async def test_an_email_arrives_as_written(mailbox: Mailbox, smtp_port: int) -> None:
    url = f"smtp://baton:p%2Fw@127.0.0.1:{smtp_port}?from=baton@acme.example&tls=no"
    async with opened(url) as channels:
        outcome = await channels.send("email", ANA, LETTER)
    assert outcome.result == "delivered", outcome.reason
    [(sender, recipients, message)] = mailbox.mails
    assert (sender, recipients) == ("baton@acme.example", ["ana@baton.example"])
    assert message["Subject"] == LETTER.subject
    assert message["Message-ID"] == f"<{LETTER.alert_id}@baton.invalid>"
    assert message.get_content().replace("\r\n", "\n") == LETTER.body
    assert mailbox.logins == [(b"baton", b"p/w")]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate and key of 127.0.0.1, in one file."""
    file = tmp_path / "mail.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", file, "-out",
         tmp_path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_text(file.read_text() + (tmp_path / "cert.pem").read_text())
    return file


@pytest.mark.parametrize("tls", ["tls", "starttls"])
@pytest.mark.parametrize("trusted", [True, False])
async def test_over_tls_with_a_login_and_only_to_a_server_that_is_who_it_says(
    mailbox: Mailbox, certificate: Path, monkeypatch: pytest.MonkeyPatch, tls: str, trusted: bool
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    def protocol() -> SMTP:
        return SMTP(
            mailbox, authenticator=mailbox.authenticate, auth_exclude_mechanism=["CRAM-MD5"],
            hostname="mail.example", auth_require_tls=tls == "starttls",
            require_starttls=tls == "starttls",
            tls_context=context if tls == "starttls" else None,
        )  # fmt: skip

    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        protocol, "127.0.0.1", 0, ssl=context if tls == "tls" else None
    )
    port = server.sockets[0].getsockname()[1]
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_name("cert.pem")))
    url = f"smtp://baton:p%2Fw@127.0.0.1:{port}?from=baton@acme.example&tls={tls}"
    async with opened(url) as channels:
        outcome = await channels.send("email", ANA, LETTER)
    server.close()
    assert outcome.result == ("delivered" if trusted else "failed"), outcome.reason
    assert len(mailbox.mails) == len(mailbox.logins) == trusted


async def test_later_mails_of_a_journey_stand_in_one_thread(
    mailbox: Mailbox, smtp_port: int
) -> None:
    letter = msgspec.structs.replace(LETTER, earlier=("first", "second"))
    async with opened(f"smtp://127.0.0.1:{smtp_port}?tls=no") as channels:
        assert (await channels.send("email", ANA, letter)).result == "delivered"
    [(_, _, message)] = mailbox.mails
    assert message["In-Reply-To"] == "<second@baton.invalid>"
    assert message["References"] == "<first@baton.invalid> <second@baton.invalid>"


async def test_a_mail_has_the_link_that_acknowledges(mailbox: Mailbox, smtp_port: int) -> None:
    link = "https://n.example/seen/" + "x" * 300
    letter = msgspec.structs.replace(LETTER, seen_link=link)
    async with opened(f"smtp://127.0.0.1:{smtp_port}?tls=no") as channels:
        assert (await channels.send("email", ANA, letter)).result == "delivered"
    assert f"Got it: {link}" in mailbox.mails[0][2].get_content()


async def test_a_mail_has_the_link_that_answers(mailbox: Mailbox, smtp_port: int) -> None:
    url = "https://b.example/answer/" + "x" * 200
    letter = msgspec.structs.replace(LETTER, answer=Answer(url, "x" * 200, ("No budget",)))
    async with opened(f"smtp://127.0.0.1:{smtp_port}?tls=no") as channels:
        outcome = await channels.send("email", ANA, letter)
    assert outcome.result == "delivered"
    [(_, _, message)] = mailbox.mails
    assert f"Accept or reject: {url}\n" in message.get_content().replace("\r\n", "\n")


async def test_a_server_that_hangs_up_after_the_mail_leaves_it_unsure() -> None:
    """It may have taken the mail: that is marked, and only then."""

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        async for line in reader:
            if line.upper().startswith(b"DATA"):
                writer.write(b"354 go on\r\n")
            elif line == b".\r\n":
                break
            elif line.split(b" ")[0].strip().upper() in (b"EHLO", b"HELO", b"MAIL", b"RCPT"):
                writer.write(b"250 fine\r\n")
        writer.close()

    server = await asyncio.start_server(rude, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with opened(f"smtp://127.0.0.1:{port}?tls=no") as channels:
        outcome = await channels.send("email", ANA, LETTER)
    server.close()
    assert (outcome.result, outcome.ambiguous, outcome.down) == ("failed", True, True)
    async with opened("smtp://127.0.0.1:1?tls=no") as channels:
        away = await channels.send("email", ANA, LETTER)
    assert (away.ambiguous, away.down) == (False, True)


async def test_an_apprise_mail_url_works_too(mailbox: Mailbox, smtp_port: int) -> None:
    url = f"mailto://127.0.0.1:{smtp_port}?from=baton@acme.example&mode=insecure"
    async with opened(url) as channels:
        outcome = await channels.send("email", ANA, LETTER)
    assert outcome.result == "delivered", outcome.reason
    [(_, recipients, message)] = mailbox.mails
    assert recipients == ["ana@baton.example"]
    assert message["Subject"] == LETTER.subject


@pytest.mark.parametrize(("answer", "permanent"), [("550 no ana@baton.example here", True),
                                                   ("450 busy", False)])  # fmt: skip
async def test_a_refusal_says_why_and_whether_to_come_again(
    mailbox: Mailbox, smtp_port: int, answer: str, permanent: bool
) -> None:
    mailbox.recipient_answers = [answer]
    async with opened(f"smtp://127.0.0.1:{smtp_port}?tls=no") as channels:
        outcome = await channels.send("email", ANA, LETTER)
    assert (outcome.result, outcome.permanent) == ("failed", permanent)
    assert answer[:3] in (outcome.reason or "")
    assert "ana@" not in (outcome.reason or "")


async def test_a_wrong_password_is_not_repeated(smtp_port: int) -> None:
    async with opened(f"smtp://baton:sesame@127.0.0.1:{smtp_port}?tls=no") as channels:
        outcome = await channels.send("email", ANA, LETTER)
    # Ours to mend, within the window: not the recipient's fault.
    assert (outcome.result, outcome.permanent) == ("failed", False)
    assert "535" in (outcome.reason or "")
    assert "sesame" not in (outcome.reason or "")


async def test_tls_is_never_silently_left_out(smtp_port: int, mailbox: Mailbox) -> None:
    async with opened(f"smtp://127.0.0.1:{smtp_port}") as channels:  # the server has no STARTTLS
        outcome = await channels.send("email", ANA, LETTER)
    assert outcome.result == "failed"
    assert mailbox.mails == []


async def test_a_server_that_is_away_fails_for_now() -> None:
    async with opened("smtp://127.0.0.1:1?tls=no") as channels:
        outcome = await channels.send("email", ANA, LETTER)
    assert (outcome.result, outcome.permanent) == ("failed", False)


async def test_a_silent_server_is_given_up_in_time() -> None:
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with opened(f"smtp://127.0.0.1:{port}?tls=no", timeout_s=0.2) as channels:
        outcome = await channels.send("email", ANA, LETTER)
    assert (outcome.result, outcome.permanent) == ("failed", False)
    gone.set()
    server.close()


@contextlib.asynccontextmanager
async def web(status: str) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A web server that answers every request with `status` and keeps the bodies."""
    bodies: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )  # fmt: skip
        bodies.append(await reader.readexactly(length))
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], bodies
    server.close()


async def test_an_apprise_url_gets_its_secret_from_the_environment() -> None:
    async with web("200 OK") as (port, bodies), opened(None, environment={"T": "hush"}) as channels:
        url = f"json://127.0.0.1:{port}/${{T}}/hook"
        person = Person("ana", "Ana", channels=(url,))
        letter = Letter(LETTER.alert_id, LETTER.subject, LETTER.body + "{{ secret }} :smile: \\n")
        outcome = await channels.send(label(url), person, letter)
    assert outcome.result == "delivered", outcome.reason
    [body] = bodies
    posted = msgspec.json.decode(body)
    assert posted["title"] == LETTER.subject
    # Apprise's own templates, emoji and escapes leave what a lead wrote alone.
    assert posted["message"].split() == letter.body.split()


async def test_an_apprise_failure_has_a_reason_without_secrets() -> None:
    async with (
        web("500 Oh no") as (port, _),
        opened(None, environment={"T": "hush-hush"}) as channels,
    ):
        url = f"json://127.0.0.1:{port}/${{T}}/hook"
        outcome = await channels.send(label(url), Person("a", "A", channels=(url,)), LETTER)
    assert (outcome.result, outcome.permanent) == ("failed", False)
    assert "500" in (outcome.reason or "")
    assert "hush" not in (outcome.reason or "")


async def test_an_address_the_server_cannot_take_is_no_fault_of_the_server(
    mailbox: Mailbox, smtp_port: int
) -> None:
    """An address with an umlaut at a server without SMTPUTF8: nobody else's mail shall wait for it."""
    url = f"smtp://127.0.0.1:{smtp_port}?from=baton@acme.example&tls=no"
    async with opened(url) as channels:
        zoe = Person("zoe", "Zoë", "zoë@baton.example", channels=("email",))
        outcome = await channels.send("email", zoe, LETTER)
    assert (outcome.result, outcome.permanent, outcome.down) == ("failed", True, False)
    assert not outcome.ambiguous
    assert "zoë" not in (outcome.reason or "")
    assert mailbox.mails == []


async def test_a_mail_too_large_for_the_server_is_no_fault_of_the_server(mailbox: Mailbox) -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(mailbox, data_size_limit=1000, hostname="mail.example"), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    large = msgspec.structs.replace(LETTER, body="line\n" * 1000)
    async with opened(f"smtp://127.0.0.1:{port}?from=baton@acme.example&tls=no") as channels:
        outcome = await channels.send("email", ANA, large)
    server.close()
    assert (outcome.result, outcome.permanent, outcome.down) == ("failed", True, False)


async def test_services_that_hang_hold_up_no_mail(mailbox: Mailbox, smtp_port: int) -> None:
    """Every thread for Apprise waits for a service that never answers; the mail goes out at once."""
    came: list[asyncio.StreamWriter] = []

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer)

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"json://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    stuck = Person("bob", "Bob", channels=(url,))
    async with opened(f"smtp://127.0.0.1:{smtp_port}?from=b@acme.example&tls=no", 8) as channels:
        hanging = [asyncio.create_task(channels.send(label(url), stuck, LETTER)) for _ in range(2)]
        async with asyncio.timeout(6):
            while len(came) < 2:
                await asyncio.sleep(0.01)
            outcome = await channels.send("email", ANA, LETTER)
        assert (outcome.result, len(mailbox.mails)) == ("delivered", 1)
        assert not any(task.done() for task in hanging)
        server.close()
        for writer in came:
            writer.close()
        assert {o.result for o in await asyncio.gather(*hanging)} == {"failed"}
