"""Hours, holidays, days away and quiet hours: time counted in them, with each odd day's stated outcome."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.calendars import (
    WEEKDAYS,
    Calendar,
    absence,
    add_business,
    after_quiet,
    away_at,
    business_seconds,
    is_open,
    is_quiet,
    next_open,
    span,
    week,
)
from services.contracts.team import Person, parse_team
from services.contracts.yaml_source import SourceError

HOUR = 3600.0
OFFICE = week((d, ["09:00-12:00", "13:00-17:30"]) for d in WEEKDAYS[:5])
BERLIN = Calendar(OFFICE, "Europe/Berlin", "DE-BE")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_hours_are_read_by_the_wall_clock_of_the_zone() -> None:
    assert is_open(BERLIN, at("2026-03-02T09:00+01:00"))
    assert not is_open(BERLIN, at("2026-03-02T12:00+01:00")), "the end of a span is closed"
    assert next_open(BERLIN, at("2026-03-02T12:15+01:00")) == at("2026-03-02T13:00+01:00")
    assert next_open(BERLIN, at("2026-03-06T17:30+01:00")) == at("2026-03-09T09:00+01:00")
    assert add_business(BERLIN, at("2026-03-06T16:30+01:00"), 2 * HOUR) == at(
        "2026-03-09T10:00+01:00"
    )


def test_an_hour_skipped_in_spring_is_not_worked_and_one_repeated_in_autumn_is() -> None:
    nights = Calendar(week([("sun", ["01:00-04:00"])]), "Europe/Berlin")
    spring, autumn = at("2026-03-29T00:00+01:00"), at("2026-10-25T00:00+02:00")
    day = timedelta(days=1)
    assert business_seconds(nights, spring, spring + day) == 2 * HOUR
    assert business_seconds(nights, autumn, autumn + day) == 4 * HOUR
    skipped = Calendar(week([("sun", ["02:30-04:00"])]), "Europe/Berlin")
    assert next_open(skipped, spring) == at("2026-03-29T03:00+02:00"), "from the jump on"
    within = Calendar(week([("sun", ["02:10-02:50"])]), "Europe/Berlin")
    assert business_seconds(within, spring, spring + day) == 0, "a span that was skipped whole"


def test_an_office_day_of_the_changed_clock_begins_at_nine() -> None:
    friday = at("2026-03-27T17:30+01:00")
    assert next_open(BERLIN, friday) == at("2026-03-30T09:00+02:00")
    assert add_business(Calendar(OFFICE, "Europe/Berlin"), friday, HOUR) == at(
        "2026-03-30T10:00+02:00"
    )


def test_a_leap_day_is_a_day() -> None:
    leap = at("2028-02-29T00:00+01:00")  # a Tuesday
    assert business_seconds(BERLIN, leap, leap + timedelta(days=1)) == 7.5 * HOUR
    yearly = Calendar(week((d, ["00:00-24:00"]) for d in WEEKDAYS), "UTC")
    assert business_seconds(yearly, at("2028-01-01T00:00Z"), at("2029-01-01T00:00Z")) == 366 * 86400


def test_a_holiday_is_closed_and_only_where_it_is_kept() -> None:
    womens_day = at("2027-03-08T10:00+01:00")  # a Monday; a holiday in Berlin, not in Bavaria
    assert not is_open(BERLIN, womens_day)
    assert is_open(Calendar(OFFICE, "Europe/Berlin", "DE-BY"), womens_day)


def test_a_holiday_on_a_weekend_closes_the_day_it_is_observed_where_the_law_moves_it() -> None:
    new_york = Calendar(OFFICE, "America/New_York", "US")
    assert not is_open(new_york, at("2026-07-03T10:00-04:00")), "4 July 2026 is a Saturday"
    assert is_open(new_york, at("2026-07-06T10:00-04:00"))
    unity = at("2026-10-02T10:00+02:00")  # 3 October 2026 is a Saturday; Germany moves nothing
    assert is_open(BERLIN, unity)
    assert is_open(BERLIN, unity + timedelta(days=3))


def test_a_shift_over_midnight_belongs_to_the_day_it_begins_on() -> None:
    nights = Calendar(week((d, ["22:00-06:00"]) for d in WEEKDAYS), "Europe/Berlin", "DE-BE")
    assert is_open(nights, at("2026-05-01T05:00+02:00")), "begun on 30 April, into the holiday"
    assert not is_open(nights, at("2026-05-01T23:00+02:00")), "would begin on the holiday"
    assert not is_open(nights, at("2026-05-02T05:00+02:00"))
    assert is_open(nights, at("2026-05-02T22:00+02:00"))


def test_a_shift_over_the_new_year_is_counted_once() -> None:
    nights = Calendar(week((d, ["22:00-06:00"]) for d in WEEKDAYS), "UTC")
    assert business_seconds(nights, at("2026-12-31T21:00Z"), at("2027-01-01T07:00Z")) == 8 * HOUR
    assert add_business(nights, at("2026-12-31T23:00Z"), 6 * HOUR) == at("2027-01-01T05:00Z")


def test_a_person_without_hours_is_always_open_but_on_the_holidays_they_keep() -> None:
    night = at("2026-12-25T03:00Z")
    assert is_open(Person("a", "A"), night)
    assert next_open(Person("a", "A"), night) == night
    assert business_seconds(Person("a", "A"), night, night + timedelta(days=9)) == 9 * 86400
    keeps = Person("a", "A", holidays="DE")
    assert not is_open(keeps, night)
    assert next_open(keeps, night) == at("2026-12-27T00:00Z")


def test_nobody_ever_there_ends_without_a_moment() -> None:
    never = Calendar(((),) * 7)
    now = at("2026-01-01T00:00Z")
    assert next_open(never, now) is None
    assert add_business(never, now, 1) is None
    assert business_seconds(never, now, now + timedelta(days=4000)) == 0
    with pytest.raises(ValueError, match="nobody is ever there"):
        week([])


def test_more_than_a_lifetime_of_work_ends_without_a_moment() -> None:
    assert add_business(BERLIN, at("2026-01-01T00:00Z"), 1e12) is None


def test_away_includes_the_last_day_and_names_the_stand_in() -> None:
    trip = absence(date(2026, 8, 3), date(2026, 8, 14), "Europe/Berlin", "b")
    person = Person("a", "A", time_zone="Europe/Berlin", away=(trip,))
    assert away_at(person, at("2026-08-02T23:59+02:00")) is None
    assert away_at(person, at("2026-08-14T23:59+02:00")) is not None
    assert away_at(person, at("2026-08-15T00:00+02:00")) is None
    found = away_at(person, at("2026-08-10T12:00Z"))
    assert found is not None
    assert found.stand_in == "b"
    assert is_open(person, at("2026-08-10T12:00Z")), "away stops no clock"
    with pytest.raises(ValueError, match="ends before"):
        absence(date(2026, 8, 3), date(2026, 8, 2), "UTC")


def test_quiet_hours_end_in_the_morning_of_the_persons_zone() -> None:
    person = Person("a", "A", time_zone="America/New_York", quiet=(span("22:00-07:00"),))
    assert is_quiet(person, at("2026-06-01T23:00-04:00"))
    assert is_quiet(person, at("2026-06-02T06:59-04:00"))
    assert not is_quiet(person, at("2026-06-02T07:00-04:00"))
    assert after_quiet(person, at("2026-06-01T23:00-04:00")) == at("2026-06-02T07:00-04:00")
    assert after_quiet(person, at("2026-06-02T12:00-04:00")) == at("2026-06-02T12:00-04:00")
    assert after_quiet(Calendar(quiet=(span("00:00-24:00"),)), at("2026-06-02T12:00Z")) is None


def test_ten_years_are_counted_in_a_millisecond() -> None:
    start, end = at("2020-01-01T00:00Z"), at("2030-06-01T00:00Z")
    business_seconds(BERLIN, start, end)  # the years are laid out
    best = min(_timed(start, end) for _ in range(20))
    assert best < 0.001


def _timed(start: datetime, end: datetime) -> float:
    began = time.perf_counter()
    business_seconds(BERLIN, start, end)
    return time.perf_counter() - began


ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
MOMENTS = st.datetimes(datetime(2019, 1, 1), datetime(2031, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@st.composite
def calendars(draw: st.DrawFn) -> Calendar:
    """Give a calendar of one or two disjoint spans a day, some over midnight."""
    days: list[tuple[str, list[str]]] = []
    for name in draw(st.sets(st.sampled_from(WEEKDAYS), min_size=1)):
        spans = [draw(st.sampled_from(("08:15-12:00", "00:00-07:00", "02:00-03:00")))]
        if draw(st.booleans()):
            spans.append(draw(st.sampled_from(("13:00-17:30", "22:00-24:00"))))
        days.append((name, spans))
    zone = draw(st.sampled_from(ZONES))
    return Calendar(week(days), zone, draw(st.sampled_from((None, "DE-BE", "US"))))


@given(calendars(), MOMENTS, st.floats(0, 1000 * HOUR))
def test_adding_and_counting_are_inverse(
    calendar: Calendar, start: datetime, seconds: float
) -> None:
    end = add_business(calendar, start, seconds)
    assert end is not None
    assert business_seconds(calendar, start, end) == pytest.approx(seconds, abs=1e-3)


@given(calendars(), st.tuples(MOMENTS, MOMENTS, MOMENTS).map(sorted))
def test_counting_adds_up_and_never_goes_back(calendar: Calendar, three: list[datetime]) -> None:
    a, b, c = three
    first, second = business_seconds(calendar, a, b), business_seconds(calendar, b, c)
    assert first >= 0
    assert second >= 0
    assert business_seconds(calendar, a, c) == pytest.approx(first + second, abs=1e-3)
    assert first <= (b - a).total_seconds() + 1e-6


@given(calendars(), MOMENTS)
def test_the_next_open_moment_is_open_and_nothing_before_it_is(
    calendar: Calendar, start: datetime
) -> None:
    opens = next_open(calendar, start)
    assert opens is not None
    assert opens >= start
    assert is_open(calendar, opens)
    assert business_seconds(calendar, start, opens) == 0


PERSON = "people:\n  - {id: a, name: A, roles: [ae], time_zone: Europe/Berlin, %s}\n"


def test_a_roster_says_hours_holidays_absences_and_quiet_hours() -> None:
    keys = (
        "hours: {mon: ['09:00-12:00', '13:00-17:00'], tue: '22:00-02:00'}, holidays: DE-BE, "
        "away: [{from: 2026-08-03, until: 2026-08-14T12:00, stand_in: b}], quiet: '20:00-08:00', "
        "skills: [french], team: emea, capacity: 20"
    )
    text = PERSON % keys + "  - {id: b, name: B, roles: [ae], working_hours: '09:00-17:00'}\n"
    a, b = parse_team(text, "team.yaml").people
    assert a.hours == (((540, 720), (780, 1020)), ((1320, 1560),), (), (), (), (), ())
    assert a.away[0].end == at("2026-08-14T12:00+02:00")
    assert (a.quiet, a.holidays) == (((1200, 1920),), "DE-BE")
    assert (a.skills, a.team, a.capacity) == (("french",), "emea", 20)
    assert b.hours == (((540, 1020),),) * 5 + ((),) * 2


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("hours: {mon: '9-17'}", "'9-17' are not hours. Write them as '09:00-17:30'."),
        ("hours: {montag: '09:00-17:00'}", "unknown key 'montag' in people[0].hours"),
        ("hours: {mon: '22:00-10:00', tue: '09:00-12:00'}", "overlap on tue. Join them to one."),
        ("hours: {}", "nobody is ever there. Leave 'hours' out to be always open."),
        ("holidays: XX", "unknown country 'XX'. Write its ISO 3166-1 code"),
        ("holidays: DE-XX", "DE has no part 'XX' with holidays of its own"),
        ("away: [{from: 2026-08-03, until: 2026-08-01}]", "it ends before it begins"),
        ("away: [{from: soon, until: 2026-08-01}]", "must be a day, not soon. Write it as"),
        ("away: [{from: 2026-08-03, until: 2026-08-04, stand_in: z}]", "'z', is not in the roster"),
        ("away: [{from: 2026-08-03, until: 2026-08-04, stand_in: a}]", "a cannot stand in for a"),
        ("quiet: ['00:00-12:00', '12:00-24:00']", "it is quiet all day"),
        ("working_hours: '09:00-17:00', hours: {mon: '09:00-12:00'}", "both 'hours' and"),
    ],
)  # fmt: skip
def test_a_wrong_calendar_is_refused_with_its_place_and_remedy(key: str, told: str) -> None:
    with pytest.raises(SourceError) as refused:
        parse_team(PERSON % key, "team.yaml")
    assert told in str(refused.value)
    assert str(refused.value).startswith("team.yaml:2:")
