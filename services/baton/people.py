"""`baton people`: list the roster, import it from CSV, and let somebody leave, over the API."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import httpx
from rich.console import Console
from rich.table import Table

from services.baton.command import RefusedError

TIMEOUT_S = 60.0


@contextmanager
def _client(url: str, key: str) -> Generator[httpx.Client]:
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
        yield client


def _answer(response: httpx.Response, file: str = "") -> dict[str, Any]:
    body = cast("dict[str, Any]", response.json())
    if response.is_success:
        return body
    if "problems" in body:
        raise RefusedError(
            "\n".join(
                f"{file}:{p['line']}: {p['message']}. {p['remedy']}" for p in body["problems"]
            )
        )
    raise RefusedError(f"{body.get('detail', response.text)} {body.get('remedy', '')}".strip())


def show(url: str, key: str) -> None:
    """Print the roster with what each person holds. Raises RefusedError and httpx.HTTPError."""
    with _client(url, key) as client:
        people = _answer(client.get("/v1/people"))["items"]
    table = Table(show_edge=False)
    for column in ("id", "name", "roles", "weight", "holds", "given", "there", "next for"):
        table.add_column(column)
    for person in people:
        load = person["load"]
        there = f"away until {load['away_until'][:16]}" if load["away_until"] else "yes"
        if not load["away_until"] and not load["is_open"]:
            there = "out of hours"
        roles = person["roles"] if isinstance(person["roles"], str) else ", ".join(person["roles"])
        table.add_row(
            person["id"], person["name"], roles, f"{person.get('weight', 1):g}",
            str(load["open_journeys"]), str(sum(load["given"].values())), there,
            ", ".join(load["next_for"]),
        )  # fmt: skip
    Console(highlight=False).print(table)


def import_file(url: str, key: str, text: str, file: str, *, dry_run: bool) -> str:
    """Send a CSV file and say what it did. Raises RefusedError with a line for each mistake."""
    with _client(url, key) as client:
        done = _answer(
            client.post(
                "/v1/people/import", content=text.encode(), params={"dry_run": dry_run},
                headers={"content-type": "text/csv"},
            ),
            file,
        )  # fmt: skip
    parts = [f"{len(done[n])} {n}" for n in ("added", "changed", "unchanged")]
    return f"{', '.join(parts)}{' (nothing kept: dry run)' if dry_run else ''}"


def leave(url: str, key: str, id: str, to: str | None) -> str:
    """Take somebody off the roster, their open journeys to `to` or by routing; say what happened."""
    with _client(url, key) as client:
        done = _answer(client.post(f"/v1/people/{id}/leave", json={"to": to}))
    where = f"to {to}" if to else "by routing"
    left = f"; {done['still_held']} still to do: run it again" if done["still_held"] else ""
    return f"{id} left; {done['given_on']} open journeys given on {where}{left}"
