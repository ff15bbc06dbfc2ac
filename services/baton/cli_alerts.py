"""The commands `baton alerts ...`: see what an alert looks like, and try somebody's channels."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.baton.command import DATA, NOTIFIER_URL, Data, NotifierUrl, api_key, fail, run, told

if TYPE_CHECKING:
    from services.contracts.team import Person, Team

app = typer.Typer(no_args_is_help=True, help="Alerts: preview their texts, test channels.")


@app.command("preview")
def preview(
    who: Annotated[str, typer.Argument(help="a role, or a person's id")],
    channel: Annotated[
        str | None, typer.Option(help="one channel: a name, a URL's scheme, or a whole URL")
    ] = None,
    event: Annotated[
        Path | None, typer.Option(help="a published event (JSON); without: a made-up one")
    ] = None,
    kind: Annotated[
        str, typer.Option(help="the made-up one: transition, handoff (overdue), or clock")
    ] = "transition",
    team_file: Annotated[
        Path, typer.Option("--team", envvar="BATON_TEAM_FILE", help="the roster")
    ] = Path("playbooks/team.yaml"),
    templates_dir: Annotated[
        Path | None, typer.Option("--templates", envvar="BATON_TEMPLATES_DIR", help="own templates")
    ] = None,
) -> None:
    """Write what an alert would look like, without sending it; exit 1 when a template is broken."""
    from services.contracts.team import load_team
    from services.contracts.yaml_source import SourceError
    from services.notifier.errors import UnreadableError
    from services.notifier.previews import SAMPLES, previews, published_of, sample, sample_values
    from services.notifier.templates import Templates

    public_url = os.environ.get("BATON_PUBLIC_URL", "http://127.0.0.1:8080")
    templates = Templates(templates_dir)
    templates.check(sample_values(public_url))
    if kind not in SAMPLES:
        fail(f"--kind {kind!r} is none of: {', '.join(SAMPLES)}", 2)
    try:
        team = load_team(team_file)
        published = sample(kind) if event is None else published_of(event.read_bytes())
    except (SourceError, OSError) as error:
        fail(str(error), 2)
    except UnreadableError as error:
        fail(f"{event}: not a published event: {error.reason}", 2)
    role, person = _whom(team, who)
    found = previews(
        published, team, role, person, _channels(person, channel), public_url, templates
    )
    for each in found:
        print(f"== {each.channel}\n{each.subject}\n\n{each.body.rstrip()}\n")
        if each.posted is not None:
            print(json.dumps(each.posted, indent=2, ensure_ascii=False) + "\n")
    if templates.problems:
        fail("\n".join(str(problem) for problem in templates.problems))


def _whom(team: Team, who: str) -> tuple[str, Person | None]:
    from services.contracts.team import ROLE_KEYS

    person = team.by_id.get(who)
    if person is not None:
        return person.roles[0] if person.roles else "sales_leadership", person
    if who not in ROLE_KEYS:
        fail(f"{who!r} is nobody's id, and no role: {', '.join(ROLE_KEYS)}", 2)
    return who, next(iter(team.by_role.get(who, ())), None)


def _channels(person: Person | None, channel: str | None) -> list[str]:
    own = list(person.channels) if person is not None else ["inbox"]
    if channel is None:
        return own
    matching = [c for c in own if channel in (c, c.partition("://")[0])]
    if (not matching and channel in ("inbox", "console", "email")) or "://" in channel:
        return [channel]
    if not matching:
        fail(f"{channel!r} is not among their channels, nor a whole URL", 2)
    return matching


@app.command("test")
def try_channels(
    person: Annotated[str, typer.Argument(help="a person's id")],
    channel: Annotated[
        str | None, typer.Option(help="one channel: its label, a name or a URL's scheme")
    ] = None,
    notifier_url: NotifierUrl = NOTIFIER_URL,
    data: Data = DATA,
) -> None:
    """Send a message now by somebody's channels; exit 1 when one did not go out."""
    import httpx

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(timeout=120) as client:
            return await client.post(
                f"{notifier_url}/v1/channels/test",
                json={"person": person, "channel": channel},
                headers={"authorization": f"Bearer {api_key(data)}"},
            )

    answer = run(send())
    body = answer.json()
    if answer.status_code != 200:
        fail(told(body) or answer.text)
    for each in body["items"]:
        reason = f"  {each['reason']}" if each["reason"] else ""
        print(f"{each['result']:10} {each['channel']:24} {each['latency_ms']} ms{reason}")
    if any(each["result"] != "delivered" for each in body["items"]):
        raise typer.Exit(1)
