"""The mail server's URL, the e-mail's headers, and what a channel answers without sending."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from services.contracts.team import Person
from services.notifier.channels import Channels
from services.notifier.letters import Letter
from services.notifier.mail import SmtpServer, mail, smtp_server
from services.notifier.redaction import label

LETTER = Letter("018f0000-0000-7000-8000-000000000001", "Grüße: Ada (Acme)", "Zeile\n.\nend\n")


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mx.example:2525?from=b@x.example&tls=no",
         SmtpServer("mx.example", 2525, "b@x.example", "no")),
        ("smtp://u%40x.example:p%2Fw@mx.example",
         SmtpServer("mx.example", 587, "u@x.example", "starttls", "u@x.example", "p/w")),
        ("smtps://u:p@mx.example", SmtpServer("mx.example", 465, "baton@mx.example", "tls", "u", "p")),
        ("smtp://mx.example?tls=no", SmtpServer("mx.example", 25, "baton@mx.example", "no")),
    ],
)  # fmt: skip
def test_a_mail_servers_url(url: str, server: SmtpServer) -> None:
    assert smtp_server(url) == server


@pytest.mark.parametrize(
    "url",
    ["http://x:secret@y", "smtp://", "smtp://x:secret@y?tls=maybe", "smtp://x:secret@y?from=a%0Ab",
     "smtp://x:secret@y:port"],
)  # fmt: skip
def test_a_bad_mail_servers_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        smtp_server(url)
    assert "secret" not in str(refused.value)


def test_an_email_has_a_stable_message_id_and_is_plain_text() -> None:
    message = mail(LETTER, "baton@x.example", "ana@x.example")
    assert message["Message-ID"] == f"<{LETTER.alert_id}@baton.invalid>"
    assert message["Message-ID"] == mail(LETTER, "a@b.example", "c@d.example")["Message-ID"]
    assert message["Subject"] == LETTER.subject
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content_type() == "text/plain"


def test_a_subject_cannot_add_a_header() -> None:
    letter = Letter("x", "hello\r\nBcc: all@victim.example", "body")
    with pytest.raises(ValueError):
        mail(letter, "a@b.example", "c@d.example")


# One of Apprise's services imports a module that Python 3.13 has dropped.
@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("channel", "person", "result", "reason"),
    [
        ("email", Person("a", "A", "a@x.example", channels=("email",)), "skipped", "BATON_SMTP_URL"),
        ("email", Person("a", "A"), "skipped", "no e-mail address"),
        ("email", None, "skipped", "roster"),
        ("json:12345678", Person("a", "A"), "skipped", "roster"),
        (label("json://${HOOK}"), Person("a", "A", channels=("json://${HOOK}",)), "failed", "HOOK"),
        (label("nosuch://x"), Person("a", "A", channels=("nosuch://x",)), "failed", "Apprise"),
    ],
)  # fmt: skip
async def test_a_channel_that_cannot_send_says_why(
    channel: str, person: Person | None, result: str, reason: str
) -> None:
    channels = Channels(None, 5, 2, {})
    outcome = await channels.send(channel, person, LETTER)
    channels.close()
    assert outcome.result == result
    assert reason in (outcome.reason or "")
    assert outcome.permanent == (result == "failed")


async def test_the_console_names_the_alert_and_repeats_no_text() -> None:
    channels = Channels(None, 5, 2, {})
    with capture_logs() as lines:
        outcome = await channels.send("console", None, LETTER)
    channels.close()
    assert outcome.result == "delivered"
    [line] = lines
    assert line["alert_id"] == LETTER.alert_id
    assert "Zeile" not in str(line)
    assert "Ada" not in str(line)
