"""What alerts say of handoffs and clocks: what is waited for, until when, how late, and what to do."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from services.contracts.events import HANDOFFS_TOPIC, OWNER_CHANGED, TRANSITIONED, Message
from services.contracts.handoffs import (
    ACCEPTED,
    CLOCK_RANG,
    OFFERED,
    OVERDUE,
    REJECTED,
    WITHDRAWN,
    ClockRang,
    HandoffTold,
)
from services.contracts.preferences import AlertPreferences
from services.contracts.published import (
    AlertWish,
    JourneyRef,
    LeadSnapshot,
    OfferRef,
    OwnerChanged,
    PersonRef,
    Score,
    StageGuide,
)
from services.contracts.team import Person, Team, team_of
from services.notifier.alerts import Alert, alerts_of
from services.notifier.errors import UnreadableError
from services.notifier.messages import HandoffNews, handoff_news, read_transition
from services.notifier.waiting import span
from tests.unit.test_notifier_alerts import event

ELENA = PersonRef("elena", "Elena Petrova")
TEAM = team_of(
    (
        Person(
            "elena", "Elena Petrova", roles=("ae",), time_zone="Europe/Berlin",
            channels=("inbox", "email"),
            alerts=AlertPreferences(channels=(("clock", ("console",)), ("handoff", ("inbox",)))),
        ),
        Person("kim", "Kim Lead", roles=("ae",), leads=("ae",), time_zone="America/New_York"),
        Person("sofia", "Sofia Top", roles=("sales_leadership",), channels=("inbox", "console")),
    )
)  # fmt: skip
OFFERED_AT = datetime(2026, 3, 2, 10, tzinfo=UTC)
DUE = OFFERED_AT + timedelta(hours=4)
NOW = DUE + timedelta(hours=2, minutes=5)
HANDOFF = "018f0000-0000-7000-8000-0000000000cc"
LEAD = LeadSnapshot("018f0000-0000-7000-8000-0000000000aa", None, "Ada Lovelace", "Acme", {})
JOURNEY = JourneyRef("018f0000-0000-7000-8000-0000000000bb", "sales", "main")
OFFER = OfferRef(HANDOFF, "ae", DUE, ["No budget", "Nobody who decides was there"])


def told(**changes: Any) -> HandoffTold:
    """A handoff as it is published."""
    handoff = HandoffTold(
        handoff_id=HANDOFF, lead=LEAD, journey=JOURNEY, stage="sql", stage_title="Discovery",
        role="ae", from_role="lead_agent", owner=ELENA, giver=PersonRef("lars", "Lars Agent"),
        round=1, state="offered", offered_at=OFFERED_AT, due_at=DUE, overdue_at=DUE,
        answered_at=None, answered_by=None, implied=False, reason=None, asked_at=None,
        occurred_at=DUE, recorded_at=NOW, score=Score(20, 42, 62),
        explanation="it was offered to Elena Petrova and has no answer", offer=OFFER,
    )  # fmt: skip
    return msgspec.structs.replace(handoff, **changes)


def rang(**changes: Any) -> ClockRang:
    """A clock as it is published."""
    clock = ClockRang(
        clock_id=str(uuid.uuid4()), lead=LEAD, journey=JOURNEY, stage="sql",
        stage_title="Discovery", clock="silent", title="No activity", step="remind", role="ae",
        owner=ELENA, since=OFFERED_AT, deadline=DUE, late=False, handoff_id=None, occurred_at=DUE,
        recorded_at=NOW, score=Score(20, 42, 62), explanation="a reminder before the deadline",
    )  # fmt: skip
    return msgspec.structs.replace(clock, **changes)


def message(body: Any, type: str, id: str | None = None) -> Message:
    """`body` as a message of the bus."""
    headers = {"ce_id": id or str(uuid.uuid4()), "ce_type": type}
    return Message(HANDOFFS_TOPIC, "lead", headers, msgspec.json.encode(body))


def written(
    body: Any, type: str, now: datetime = NOW, id: str | None = None, team: Team = TEAM
) -> list[Alert]:
    """The alerts of a message."""
    transition = read_transition(message(body, type, id))
    assert transition is not None
    waits = {"*": 60}
    return list(
        alerts_of(transition, team, "https://b.example", uuid.uuid4, now, escalate_after=waits)
    )


def news(body: Any, type: str) -> HandoffNews | None:
    """What a message says of a handoff."""
    transition = read_transition(message(body, type))
    assert transition is not None
    return handoff_news(transition)


def test_an_overdue_handoff_tells_its_owner_and_who_leads() -> None:
    id = str(uuid.uuid4())
    wishes = [AlertWish("ae", ELENA), AlertWish("sales_leadership", PersonRef("kim", "Kim Lead"))]
    own, lead = written(told(alerts=wishes), OVERDUE, id=id)
    assert own.subject == "Overdue: Ada Lovelace (Acme) waits for an answer from you"
    for said in (
        "Elena Petrova, this handoff is overdue: it has no answer from you.",
        "Waits for: an answer, accepted or rejected",
        "Owner:     you",
        "Given by:  Lars Agent",
        "Since:     Mon 2026-03-02 11:00 CET",
        "Until:     Mon 2026-03-02 15:00 CET",  # Elena's own time
        "Late by:   2 h 5 min, when this was sent",
        "Why you get this:\n  it was offered to Elena Petrova and has no answer",
        "Accept it, or reject it with a reason.",
        "- No budget",
        "Stage:    Discovery\n",
    ):
        assert said in own.body, said
    assert lead.subject == "Overdue: Ada Lovelace (Acme) waits for an answer from Elena Petrova"
    for said in (
        "Kim Lead, this handoff is overdue: it has no answer from Elena Petrova.",
        "Until:     Mon 2026-03-02 09:00 EST",
        "Ask Elena Petrova for an answer, or give the lead to somebody else.",
    ):
        assert said in lead.body, said
    assert "No budget" not in lead.body
    for alert in (own, lead):
        assert (alert.kind, str(alert.handoff_id), str(alert.transition_id)) == (
            "handoff", HANDOFF, id,
        )  # fmt: skip
        assert alert.escalate_after_s is None  # the playbook's ladder does it
        assert alert.journey_id == JOURNEY.id
    assert own.channels == ("inbox",)  # alerts.channels.handoff


def test_a_handoff_that_nobody_owns_is_for_sales_leadership() -> None:
    [alert] = written(told(owner=None, alerts=[AlertWish("ae", None)]), OVERDUE)
    assert alert.addressee_id == "sofia"
    assert alert.subject == "Overdue: Ada Lovelace (Acme) waits for an answer from anybody"
    assert "Give the lead to somebody." in alert.body


def test_a_handoff_offered_again_is_told_to_who_is_next() -> None:
    now = OFFERED_AT + timedelta(minutes=1)
    [alert] = written(told(overdue_at=None, alerts=[AlertWish("ae", ELENA)]), OFFERED, now)
    assert alert.subject == (
        "Offered to you: Ada Lovelace (Acme), answer until Mon 2026-03-02 15:00 CET"
    )
    assert "Elena Petrova, this lead is offered to you." in alert.body
    assert "Late by" not in alert.body


def test_an_answer_that_has_to_be_heard_of_is_told_and_waits_for_nothing() -> None:
    body = told(
        state="rejected", answered_by="elena", reason="No budget", overdue_at=None,
        alerts=[AlertWish("lead_agent", PersonRef("kim", "Kim"))],
    )  # fmt: skip
    [alert] = written(body, REJECTED)
    assert alert.subject == "Handoff rejected: Ada Lovelace (Acme)"
    assert "this handoff was rejected by elena: No budget." in alert.body
    assert alert.handoff_id is None


@pytest.mark.parametrize(
    ("step", "person", "subject", "says"),
    [
        ("remind", ELENA, "Due Mon 2026-03-02 15:00 CET: No activity, Ada Lovelace (Acme)",
         "Open the lead and do the next step before then."),
        ("due", ELENA, "Overdue: No activity, Ada Lovelace (Acme)",
         "Open the lead and do the next step now."),
        ("escalate", PersonRef("kim", "Kim Lead"),
         "Escalated to you: No activity, Ada Lovelace (Acme)",
         "Ask Elena Petrova what holds it up, or give the lead to somebody else."),
    ],
)  # fmt: skip
def test_a_clock_reminds_is_due_and_climbs(
    step: Any, person: PersonRef, subject: str, says: str
) -> None:
    now = DUE - timedelta(hours=1) if step == "remind" else NOW
    [alert] = written(rang(step=step, alerts=[AlertWish("ae", person)]), CLOCK_RANG, now)
    assert (alert.kind, alert.subject, alert.handoff_id) == ("clock", subject, None)
    assert says in alert.body
    assert "Waits for: No activity" in alert.body
    assert ("Late by:   2 h 5 min" in alert.body) == (step != "remind")
    if person is ELENA:
        assert alert.channels == ("console",)  # alerts.channels.clock


def test_a_clock_that_rang_late_says_so() -> None:
    [alert] = written(
        rang(step="due", late=True, alerts=[AlertWish("ae", ELENA, urgent=True)]), CLOCK_RANG
    )
    assert "nobody was there to tell it when it was due" in alert.body
    assert alert.urgent


def test_a_transition_says_until_when_it_has_to_be_accepted() -> None:
    offered = msgspec.json.decode(msgspec.json.encode(OFFER))
    wishes = [
        {"role": "ae", "person": {"id": "elena", "name": "Elena Petrova"}},
        {"role": "lead_agent", "person": {"id": "kim", "name": "Kim"}},
    ]
    body = event(offer=offered, responsible={"role": "ae"}, alerts=wishes)
    own, other = written(body, TRANSITIONED, OFFERED_AT)
    assert "Please accept or reject it until Mon 2026-03-02 15:00 CET." in own.body
    assert "- Nobody who decides was there" in own.body
    assert "accept or reject" not in other.body
    assert (str(own.handoff_id), other.handoff_id) == (HANDOFF, None)  # the other only informs
    assert own.escalate_after_s == 60


def test_who_gave_a_lead_away_is_not_asked_to_accept_it() -> None:
    """Of a change of owner with `tell_before` both hear, for one role; the new owner answers."""
    kim = PersonRef("kim", "Kim Lead")
    changed = OwnerChanged(
        change_id=str(uuid.uuid4()), lead=LEAD, journey=JOURNEY, role="ae", owner=ELENA,
        previous_owner=kim, why="", reason="", actor="kim", occurred_at=NOW, recorded_at=NOW,
        score=Score(1, 2, 3), stage=StageGuide("sql", "Discovery", "", "", "", [], []),
        alerts=[AlertWish("ae", ELENA), AlertWish("ae", kim)], offer=OFFER,
    )  # fmt: skip
    new, before = written(changed, OWNER_CHANGED)
    assert (new.can_answer, before.can_answer) == (True, False)
    assert (str(new.handoff_id), before.handoff_id) == (HANDOFF, None)
    assert "Please accept or reject it" in new.body
    assert "accept or reject" not in before.body


def test_who_leads_can_answer_for_the_owner() -> None:
    wish = AlertWish("ae", PersonRef("kim", "Kim Lead"))
    body = rang(step="escalate", handoff_id=HANDOFF, offer=OFFER, title="Handoff", alerts=[wish])
    [alert] = written(body, CLOCK_RANG)
    assert alert.can_answer
    assert "Ask Elena Petrova for an answer" in alert.body
    assert "Accept the handoff, or reject it" in alert.body


def test_somebody_who_left_is_reached_by_the_inbox_only() -> None:
    gone = PersonRef("gone", "Gone Away")
    [alert] = written(told(owner=gone, alerts=[AlertWish("ae", gone)]), OVERDUE)
    assert alert.channels == ("inbox",)
    assert "Until:     Mon 2026-03-02 14:00 UTC" in alert.body


def test_nobody_smuggles_anything_into_it() -> None:
    bad = "<!here> @channel [x](https://evil.example)\nBcc: all"
    body = rang(
        title=bad, owner=PersonRef("elena", bad), explanation=bad, stage_title=bad, step="escalate",
        handoff_id=HANDOFF, offer=OfferRef(HANDOFF, "ae", DUE, [bad]),
        alerts=[AlertWish("ae", PersonRef("kim", bad))],
    )  # fmt: skip
    [alert] = written(body, CLOCK_RANG)
    for text in (alert.subject, alert.body):
        assert "<!here>" not in text
        assert " @channel" not in text
        assert "](" not in text
        assert "\nBcc" not in text


def test_what_cannot_be_read_says_which_field() -> None:
    for body, type, id, field in (
        (told(), OVERDUE, "m-1", "ce_id"),
        (rang(deadline=datetime(2026, 1, 1)), CLOCK_RANG, None, "deadline"),  # noqa: DTZ001
        (told(offer=OfferRef(HANDOFF, "ae", datetime(2026, 1, 1), [])), OFFERED, None,  # noqa: DTZ001
         "offer.due_at"),
        (told(alerts=[AlertWish("AE", ELENA)]), OVERDUE, None, "alerts.role"),
    ):  # fmt: skip
        with pytest.raises(UnreadableError) as caught:
            read_transition(message(body, type, id))
        assert caught.value.field == field


def test_what_messages_say_of_a_handoff() -> None:
    id = uuid.UUID(HANDOFF)
    offered = news(told(), OFFERED)
    reasons = tuple(OFFER.reasons)
    assert offered == HandoffNews(id, NOW, "offered", DUE, reasons)
    assert news(told(), OVERDUE) == offered
    accepted = told(state="accepted", answered_by="slack:U1", offer=None)
    assert news(accepted, ACCEPTED) == HandoffNews(
        id, NOW, "accepted", DUE, (), "slack:U1", False, "accepted by slack:U1"
    )
    rejected = told(state="rejected", answered_by="elena", reason="No\nbudget", offer=None)
    assert (said := news(rejected, REJECTED)) is not None
    assert said.why == "rejected by elena: No budget"
    moved_on = told(state="accepted", implied=True, offer=None)
    assert (said := news(moved_on, ACCEPTED)) is not None
    assert (said.why, said.by, said.implied) == ("accepted, by what was done", None, True)
    assert (said := news(told(state="withdrawn", offer=None), WITHDRAWN)) is not None
    assert (said.state, said.why) == ("withdrawn", "withdrawn")
    clock = news(rang(handoff_id=HANDOFF), CLOCK_RANG)
    assert clock == HandoffNews(id, NOW)
    assert news(rang(), CLOCK_RANG) is None


def test_how_long() -> None:
    for seconds, text in (
        (0, "less than a minute"), (59, "less than a minute"), (60, "1 min"), (3660, "1 h 1 min"),
        (90_061, "1 d 1 h"), (86_400 * 3, "3 d"), (86_460, "1 d 1 min"),
    ):  # fmt: skip
        assert span(timedelta(seconds=seconds)) == text


def test_the_readers_clock_jumps_with_day_light_saving() -> None:
    spring = datetime(2026, 3, 29, 2, 30, tzinfo=UTC)  # an hour after Berlin's jump
    [alert] = written(told(due_at=spring, alerts=[AlertWish("ae", ELENA)]), OVERDUE, spring)
    assert "Until:     Sun 2026-03-29 04:30 CEST" in alert.body
    assert "Late by:   less than a minute" in alert.body
