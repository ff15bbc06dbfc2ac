"""The commands `baton subscriptions ...`: over the stage service's API."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.baton.command import DATA, STAGE_URL, Data, Url, api_key, asked, fail

app = typer.Typer(
    no_args_is_help=True,
    help="Systems that hear of events by signed webhooks: add, list, show, deliveries, pause, resume, test, "
    "rotate, resend, replay, remove.",
)
Id = Annotated[str, typer.Argument(help="id, or name, of a subscription")]


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="the system that hears")],
    address: Annotated[str, typer.Argument(help="where events are posted to, https://...")],
    type: Annotated[
        list[str] | None,
        typer.Option(help="event type, a trailing * for all that begin so; repeat it"),
    ] = None,
    filter: Annotated[str | None, typer.Option(help="a condition in CEL")] = None,
    start: Annotated[
        str, typer.Option("--from", help="now, beginning, a position of the feed, or a time")
    ] = "now",
    thin: Annotated[bool, typer.Option("--thin", help="ids only, no personal data")] = False,
    unordered: Annotated[
        bool, typer.Option("--unordered", help="do not wait for earlier events of a lead")
    ] = False,
    header: Annotated[
        list[str] | None, typer.Option(help="sent with each delivery, 'Name: value'; repeat it")
    ] = None,
    contact: Annotated[
        str | None, typer.Option(help="person or role who hears when it is stopped")
    ] = None,
    signature: Annotated[str, typer.Option(help="v1 (HMAC) or v1a (Ed25519)")] = "v1",
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Make a subscription, and show its signing secret, this once."""
    from services.baton import subscriptions

    headers: dict[str, str] = {}
    for line in header or ():
        title, colon, value = line.partition(":")
        if not colon:
            fail(f"--header {line!r}: write 'Name: value'", 2)
        headers[title.strip()] = value.strip()
    wish: dict[str, Any] = {
        "name": name, "url": address, "types": type or [], "filter": filter, "contact": contact,
        "payload": "thin" if thin else "full", "ordered": not unordered, "headers": headers,
        "from": int(start) if start.isdecimal() else start, "signature": signature,
    }  # fmt: skip
    print(asked(lambda: subscriptions.add(url, api_key(data), wish)))


@app.command("list")
def list_all(url: Url = STAGE_URL, data: Data = DATA) -> None:
    """List subscriptions with their health."""
    from services.baton import subscriptions

    asked(lambda: subscriptions.list_all(url, api_key(data)))


@app.command("show")
def show(id: Id, url: Url = STAGE_URL, data: Data = DATA) -> None:
    """Print one subscription with its health, as JSON."""
    from services.baton import subscriptions

    print(asked(lambda: subscriptions.show(url, api_key(data), id)))


@app.command("deliveries")
def deliveries(
    id: Id,
    state: Annotated[
        str | None, typer.Option(help="waiting, due, delivered, failed or skipped")
    ] = None,
    lead: Annotated[str | None, typer.Option(help="id of a lead")] = None,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """List the newest deliveries: what came of each event."""
    from services.baton import subscriptions

    query = {"state": state, "lead_id": lead}
    asked(lambda: subscriptions.deliveries(url, api_key(data), id, query))


@app.command("pause")
def pause(
    id: Id,
    reason: Annotated[str | None, typer.Option(help="shown on its page")] = None,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Stop delivering; its place is kept."""
    from services.baton import subscriptions

    body = {"reason": reason} if reason else {}
    print(asked(lambda: subscriptions.set_state(url, api_key(data), id, "pause", body)))


@app.command("resume")
def resume(id: Id, url: Url = STAGE_URL, data: Data = DATA) -> None:
    """Deliver again from where it stopped."""
    from services.baton import subscriptions

    print(asked(lambda: subscriptions.set_state(url, api_key(data), id, "resume", {})))


@app.command("test")
def send_test(id: Id, url: Url = STAGE_URL, data: Data = DATA) -> None:
    """Deliver a test event, and say what came of it; exit 1 when it did not get through."""
    from services.baton import subscriptions

    got_through, line = asked(lambda: subscriptions.test(url, api_key(data), id))
    print(line)
    if not got_through:
        raise typer.Exit(1)


@app.command("rotate")
def rotate(
    id: Id,
    keep: Annotated[float, typer.Option(help="hours that the old secret signs on; 0: stolen")] = 24,
    signature: Annotated[str | None, typer.Option(help="v1 or v1a; as it was")] = None,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Replace the signing secret, and show the new one, this once."""
    from services.baton import subscriptions

    wish = {"keep_s": keep * 3600, "signature": signature}
    print(asked(lambda: subscriptions.rotate(url, api_key(data), id, wish)))


@app.command("resend")
def resend(
    id: Id,
    delivery: Annotated[str | None, typer.Option(help="id of one delivery")] = None,
    since: Annotated[
        str | None, typer.Option(help="all that were given up and made since, RFC 3339")
    ] = None,
    until: Annotated[str | None, typer.Option(help="and before; without it, now")] = None,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Deliver once more: one delivery, or what was given up in a range of time."""
    from services.baton import subscriptions

    if (delivery is None) == (since is None):
        fail("give --delivery or --since", 2)
    wish = {"since": since, "until": until}
    print(asked(lambda: subscriptions.resend(url, api_key(data), id, delivery, wish)))


@app.command("replay")
def replay(
    id: Id,
    start: Annotated[
        str, typer.Option("--from", help="beginning, after a position of the feed, or from a time")
    ],
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Deliver everything from a place on once more."""
    from services.baton import subscriptions

    place = int(start) if start.isdecimal() else start
    print(asked(lambda: subscriptions.replay(url, api_key(data), id, place)))


@app.command("remove")
def remove(id: Id, url: Url = STAGE_URL, data: Data = DATA) -> None:
    """Remove a subscription, its place and its secrets."""
    from services.baton import subscriptions

    print(asked(lambda: subscriptions.remove(url, api_key(data), id)))
