"""People from CSV: one line a person, columns by name; every mistake with its line. Pure.

Columns are the keys of a person in the roster; lists are separated by ``;``. The hours of a weekday are the
columns ``mon`` to ``sun``. Absences and what somebody wants of their alerts are no part of it: the first
change too often for a spreadsheet, the second are no list.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from services.contracts.calendars import WEEKDAYS
from services.contracts.team import read_person
from services.contracts.yaml_source import Problem, SourceError, nearest

LINES_MAX = 10_000
_LISTS = ("roles", "territories", "quiet", "skills", "channels", "leads")
_NUMBERS = ("weight", "capacity")
_TEXTS = ("id", "name", "email", "time_zone", "working_hours", "holidays", "team")
COLUMNS = (*_TEXTS, *_LISTS, *_NUMBERS, *WEEKDAYS)
NO_COLUMNS = ("away", "alerts")
"""Keys of a person that CSV does not tell."""


def read_csv(text: str, file: str = "people.csv") -> list[dict[str, Any]]:
    """Read people as documents of the roster; raises SourceError with every problem, by line."""
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    problems: list[Problem] = []
    found: list[dict[str, Any]] = []
    lines: dict[str, int] = {}
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        problems += _header_problems(names, file)
        for row in () if problems else reader:
            if not any(cell.strip() for cell in row):
                continue
            line = reader.line_num
            if len(row) != len(names) or len(found) >= LINES_MAX:
                told = f"{len(row)} cells and {len(names)} columns"
                if len(found) >= LINES_MAX:
                    told = f"more than {LINES_MAX} people"
                problems.append(Problem(file, line, 1, told, "Correct the line; quote commas."))
                continue
            _read_row(dict(zip(names, row, strict=True)), file, line, problems, found, lines)
    except csv.Error as error:
        problems.append(Problem(file, reader.line_num, 1, str(error), "Correct the CSV."))
    if problems:
        raise SourceError(problems)
    return found


def _header_problems(names: list[str], file: str) -> list[Problem]:
    problems = [
        Problem(file, 1, 1, f"there is no column {name!r}", "Add it.")
        for name in ("id", "name", "roles")
        if name not in names
    ]
    for index, name in enumerate(names):
        if name not in COLUMNS:
            hint = nearest(name, COLUMNS) or f"Known: {', '.join(COLUMNS)}."
            problems.append(Problem(file, 1, index + 1, f"unknown column {name!r}", hint))
        elif name in names[:index]:
            told = f"the column {name!r} is there twice"
            problems.append(Problem(file, 1, index + 1, told, "Remove one."))
    return problems


def _read_row(
    cells: dict[str, str],
    file: str,
    line: int,
    problems: list[Problem],
    found: list[dict[str, Any]],
    lines: dict[str, int],
) -> None:
    document: dict[str, Any] = {}
    for name, cell in cells.items():
        value = cell.strip()
        if not value:
            continue
        parts = [part.strip() for part in value.split(";") if part.strip()]
        if name in WEEKDAYS:
            document.setdefault("hours", {})[name] = parts
        elif name in _LISTS:
            document[name] = parts
        else:
            document[name] = _number(value) if name in _NUMBERS else value
    try:
        person = read_person(document)
    except SourceError as error:
        problems += [Problem(file, line, 1, p.message, p.remedy) for p in error.problems]
        return
    if person.id in lines:
        told = f"the id {person.id!r} is on line {lines[person.id]} already"
        problems.append(Problem(file, line, 1, told, "Give each an id of their own."))
        return
    lines[person.id] = line
    found.append(document)


def _number(text: str) -> int | float | str:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text
