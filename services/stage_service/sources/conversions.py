"""What vendors write as text or number, as the value it means: times, numbers, flags.

A time that is there and cannot be read is a Defect: an event must not silently move to another moment.
Any other value that cannot be converted stays as it came, so that nothing is lost; a rule that wants
another type then counts it as not known.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from services.contracts.cloudevents import parse_time
from services.contracts.events import rfc3339
from services.stage_service.sources.functions import text_of

TIME_FORMATS = ("rfc3339", "utc", "s", "ms", "us")
"""How a source may say a time is written; also a strptime pattern with a ``%``."""
SKEW_MIN = timedelta(seconds=30)
"""Between a sender's clock and ours less than this is the way of the request, not a wrong clock: to
correct it would change the order of one lead's events."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"s": 1_000_000, "ms": 1000, "us": 1}
_WHOLE = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII)
_NAIVE = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[ Tt]([0-9]{2}:[0-9]{2})(:[0-9]{2})?(\.[0-9]+)?)?", re.ASCII
)
_FLAGS = {
    "true": True, "yes": True, "on": True, "1": True, "t": True, "y": True,
    "false": False, "no": False, "off": False, "0": False, "f": False, "n": False,
}  # fmt: skip


def read_time(value: Any, format: str) -> datetime | None:
    """Read `value`, written in `format`, as an aware UTC time; None when it is not one.

    ``s``, ``ms`` and ``us`` count from 1970 in a number or its text; ``utc`` is a date, or date and time,
    without a zone that is meant as UTC (one with a zone is taken at its word); ``rfc3339`` has its zone.
    """
    try:
        if format in _UNITS:
            return _unix(value, _UNITS[format])
        if not isinstance(value, str):
            return None
        text = value.strip()
        if format == "rfc3339":
            return _zoned(text)
        if format == "utc":
            found = _NAIVE.fullmatch(text)
            if found is None:
                return _zoned(text)
            fraction = (found[4] or ".0")[:7]
            clock = f"{found[2] or '00:00'}{found[3] or ':00'}{fraction}"
            return parse_time(f"{found[1]}T{clock}Z")
        moment = datetime.strptime(text, format)  # noqa: DTZ007  a pattern without zone is UTC
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _zoned(text: str) -> datetime | None:
    if len(text) > 10 and text[10] == " ":
        text = f"{text[:10]}T{text[11:].replace(' ', '')}"
    found = re.fullmatch(r"(.*[+-]\d\d)(\d\d)", text)  # +0000, as many write it
    if found and "T" in text.upper():
        text = f"{found[1]}:{found[2]}"
    return parse_time(text)


def _unix(value: Any, microseconds: int) -> datetime | None:
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        value = int(value)
    elif isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return _EPOCH + timedelta(microseconds=round(value * microseconds))


def corrected(time: datetime, sent_at: datetime | None, received_at: datetime) -> datetime:
    """Give `time` of a sender whose clock said `sent_at` when it was `received_at` here.

    One that would leave the calendar stays as it was: no event can have it anyway.
    """
    if sent_at is None or abs(received_at - sent_at) < SKEW_MIN:
        return time
    try:
        return time + (received_at - sent_at)
    except OverflowError:
        return time


def _integer(value: Any) -> Any:
    number = _number(value)
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return number


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip().replace(",", "")
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if len(text) < 40 and _DECIMAL.fullmatch(text) else value


def _flag(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    text = text_of(value)
    return value if text is None else _FLAGS.get(text.strip().lower(), value)


def _text(value: Any) -> Any:
    if isinstance(value, list):
        texts = [text_of(each) for each in cast("list[Any]", value)]
        return ", ".join(t for t in texts if t)
    text = text_of(value)
    return value if text is None else text.strip()


def _list(value: Any) -> Any:
    """Read ``||a||b||`` and ``a, b`` as a list of texts."""
    if not isinstance(value, str):
        return value
    mark = "||" if "||" in value else ","
    return [part.strip() for part in value.split(mark) if part.strip()]


def _moment(format: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        moment = read_time(value, format)
        return value if moment is None else rfc3339(moment)

    return convert


CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "int": _integer,
    "number": _number,
    "bool": _flag,
    "text": _text,
    "list": _list,
    "time": _moment("rfc3339"),
    "time-utc": _moment("utc"),
    "time-s": _moment("s"),
    "time-ms": _moment("ms"),
}
"""What ``as:`` of an attribute may name."""
