"""The mail server's URL, the e-mail's headers, and what a channel answers without sending."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from services.contracts.preferences import AlertPreferences
from services.contracts.team import Person, read_person
from services.contracts.yaml_source import SourceError
from services.notifier.channels import Channels
from services.notifier.hooks import slack_message, teams_card
from services.notifier.letters import Answer, Letter
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


TOKEN = "t" * 120
ANSWER = Answer(f"https://b.example/answer/{TOKEN}", TOKEN, ("No budget", "r" * 100, "x" * 151))


def elements(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The buttons of a Slack message."""
    return [e for b in message["blocks"] if b["type"] == "actions" for e in b["elements"]]


def test_a_handoff_is_answered_in_slack_within_what_slack_takes() -> None:
    letter = msgspec.structs.replace(LETTER, answer=ANSWER)
    accept, reject, other, *_ = elements(slack_message(letter, buttons=True))
    assert accept["action_id"] == "baton_accept"
    assert [(o["value"], len(o["text"]["text"])) for o in reject["options"]] == [
        ("No budget", 9), ("r" * 100, 75),
    ]  # fmt: skip
    assert (other["text"]["text"], other["url"]) == ("Other reason", ANSWER.url)
    plain = msgspec.structs.replace(letter, answer=Answer(ANSWER.url, TOKEN))
    _, other, *_ = elements(slack_message(plain, buttons=True))
    assert other["text"]["text"] == "Reject…"


def test_without_slacks_secret_or_with_a_long_token_the_page_is_opened() -> None:
    letter = msgspec.structs.replace(LETTER, answer=ANSWER)
    long = msgspec.structs.replace(LETTER, answer=Answer("https://b.example/a", "t" * 256))
    for each, buttons in ((letter, False), (long, True)):
        first, *_ = elements(slack_message(each, buttons=buttons))
        assert each.answer is not None
        assert (first["text"]["text"], first["url"]) == ("Accept or reject", each.answer.url)


def test_a_card_opens_the_page_to_answer() -> None:
    letter = msgspec.structs.replace(LETTER, answer=ANSWER, link="https://b.example/leads/1")
    card = teams_card(letter)["attachments"][0]["content"]
    assert card["actions"][0] == {
        "type": "Action.OpenUrl", "title": "Accept or reject", "url": ANSWER.url,
    }  # fmt: skip
    titles = [a["title"] for a in teams_card(LETTER)["attachments"][0]["content"]["actions"]]
    assert "Accept or reject" not in titles


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


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
async def test_a_channel_named_only_for_a_kind_of_alert_is_one_of_the_persons() -> None:
    """Who wants escalations by SMS, and by nothing else, has that channel."""
    wants = AlertPreferences(channels=(("escalation", ("nosuch://pager",)),))
    channels = Channels(None, 5, 2, {})
    person = Person("a", "A", channels=("inbox",), alerts=wants)
    outcome = await channels.send(label("nosuch://pager"), person, LETTER)
    channels.close()
    assert (outcome.result, outcome.reason) == ("failed", "Apprise does not understand the URL")


@pytest.mark.parametrize("name", ["BATON_DATABASE_URL", "BATON_LINK_KEY", "PGPASSWORD"])
async def test_a_channel_cannot_take_batons_own_secrets_out(name: str) -> None:
    """Who may write the roster shall not learn the passwords of the process."""
    channel = f"webhook+http://127.0.0.1:9/${{{name}}}"
    channels = Channels(None, 5, 2, {name: "secret"})
    outcome = await channels.send(label(channel), Person("a", "A", channels=(channel,)), LETTER)
    await channels.aclose()
    assert (outcome.result, outcome.permanent) == ("failed", True)
    assert name in (outcome.reason or "")


@pytest.mark.parametrize(
    "wishes", [{"channels": ["json://x/${BATON_LINK_KEY}"]},
               {"alerts": {"channels": {"ae": ["json://x/${PGPASSWORD}"]}}}]
)  # fmt: skip
def test_the_roster_refuses_a_channel_with_batons_own_secrets(wishes: dict[str, Any]) -> None:
    with pytest.raises(SourceError) as refused:
        read_person({"id": "a", "name": "A", "roles": ["ae"], **wishes})
    [problem] = refused.value.problems
    assert "variable of another name" in problem.remedy
