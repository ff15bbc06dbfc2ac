"""The command line. Commands import what they need when they run, so that `baton --help` is quick."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.baton import (
    cli_alerts,
    cli_audit,
    cli_connectors,
    cli_handoffs,
    cli_kafka,
    cli_people,
    cli_playbooks,
    cli_quarantine,
    cli_sources,
    cli_subscriptions,
)
from services.baton.command import (
    DATA,
    NOTIFIER_URL,
    STAGE_URL,
    Data,
    NotifierUrl,
    Url,
    api_key,
    database_url,
    fail,
    run,
)

app = typer.Typer(
    name="baton", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Carries a sales lead from hand to hand: events in, stage transitions out, the right person told.",
)  # fmt: skip
keys = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")
playbook = typer.Typer(no_args_is_help=True, help="Playbooks: check, try, publish, roll back.")
events = typer.Typer(no_args_is_help=True, help="Lead events: send, export.")
leads = typer.Typer(no_args_is_help=True, help="Leads: why, merge, unmerge, publish again.")
dead_letters = typer.Typer(no_args_is_help=True, help="What could not be delivered: list, retry.")
for name, group in (
    ("keys", keys), ("playbook", playbook), ("events", events), ("leads", leads),
    ("dead-letters", dead_letters)
):  # fmt: skip
    app.add_typer(group, name=name)
playbook.add_typer(cli_playbooks.app)
app.add_typer(cli_sources.app, name="sources")
app.add_typer(cli_connectors.app, name="connectors")
app.add_typer(cli_quarantine.app, name="quarantine")
app.add_typer(cli_alerts.app, name="alerts")
app.add_typer(cli_people.app, name="people")
app.add_typer(cli_handoffs.app, name="handoffs")
app.add_typer(cli_kafka.app, name="kafka")
app.add_typer(cli_subscriptions.app, name="subscriptions")
app.add_typer(cli_audit.app, name="audit")


@app.command()
def up(
    demo: Annotated[bool, typer.Option(help="send a believable day of made-up traffic")] = False,
    data: Data = DATA,
    port: Annotated[int, typer.Option(help="of the stage service and its pages")] = 8080,
    notifier_port: Annotated[int, typer.Option(help="of the notifier")] = 8081,
) -> None:
    """Run everything here: PostgreSQL, the stage service and the notifier."""
    from rich.console import Console

    from services.baton.supervisor import System, UpError

    console = Console(highlight=False)
    system = System(data, port, notifier_port, demo=demo, console=console)
    try:
        run(system.up())
    except UpError as error:
        fail(str(error))
    console.print("Stopped; everything is kept in", str(system.data))


@app.command()
def serve(
    service: Annotated[str, typer.Argument(help="stage, notifier or subscriptions")],
) -> None:
    """Run one service in this process, on a migrated database."""
    from pydantic import ValidationError

    from services.baton.ports import port_taken
    from services.baton.serve import STALLED_S
    from services.baton.serve import serve as serve_app
    from services.contracts.logs import configure_logs
    from services.contracts.yaml_source import SourceError
    from services.stage_service.encryption import EncryptionError

    if service not in ("stage", "notifier", "subscriptions"):
        fail(f"unknown service {service!r}: stage, notifier or subscriptions", 2)
    try:
        if service != "notifier":
            from services.stage_service.app import create_app
            from services.stage_service.delivering import create_delivering_app
            from services.stage_service.settings import StageSettings

            settings = StageSettings()  # pyright: ignore[reportCallIssue]  from the environment
            configure_logs(settings.log_format, settings.log_level, service)
            make, port = create_app, settings.port
            if service == "subscriptions":
                make, port = create_delivering_app, settings.subscriptions_port
            application = make(settings)
            host, drain_s = settings.host, settings.drain_s
            trusted, stall_s = settings.trusted_proxies, settings.stream_stall_s
        else:
            from services.notifier.app import create_app as create_notifier
            from services.notifier.settings import NotifierSettings

            wanted = NotifierSettings()  # pyright: ignore[reportCallIssue]
            configure_logs(wanted.log_format, wanted.log_level, "notifier")
            application = create_notifier(wanted)
            host, port, drain_s = wanted.notifier_host, wanted.notifier_port, wanted.drain_s
            trusted, stall_s = wanted.trusted_proxies, STALLED_S
    except ValidationError as error:
        lines = [f"BATON_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors()]
        fail("the settings are not right:\n  " + "\n  ".join(lines), 2)
    except (SourceError, OSError, EncryptionError) as error:
        fail(str(error), 2)
    if port_taken(host, port):
        prefix = "" if service == "stage" else f"{service.upper()}_"
        fail(f"port {port} is taken by another program: set BATON_{prefix}PORT")
    serve_app(application, host, port, drain_s, trusted, stall_s)


@app.command()
def migrate(data: Data = DATA) -> None:
    """Bring the database to the newest schema."""
    from services.baton.migrations import migrate as migrate_database

    print(f"schema revision {run(migrate_database(database_url(data)))}")


@app.command()
def asyncapi(url: Url = STAGE_URL) -> None:
    """Print the AsyncAPI document: topics, feed, stream and webhooks, with the schema of each event."""
    from services.baton.asyncapi import asyncapi_document

    print(json.dumps(asyncapi_document(url), indent=2))


@app.command(hidden=True)
def demo(url: Url = STAGE_URL, data: Data = DATA) -> None:
    """Send made-up traffic until stopped."""
    from services.baton import demo as traffic

    run(traffic.run(url, api_key(data)))


@app.command()
def login(url: Url = STAGE_URL, data: Data = DATA) -> None:
    """Print a link that logs a browser in, once."""
    import asyncpg

    from services.contracts.access import LOGIN_MINUTES, SCOPES, create_key

    async def create() -> str:
        connection = await asyncpg.connect(database_url(data))
        try:
            _, token = await create_key(
                connection, "browser", SCOPES, kind="login", lifetime_s=LOGIN_MINUTES * 60
            )
        finally:
            await connection.close()
        return token

    print(f"{url}/login#{run(create())}")


@app.command()
def verify(
    workers: Annotated[int, typer.Option(min=0, help="processes; 0: one a core")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
    repair: Annotated[
        bool, typer.Option(help="show what a repair would do, and do it once that is confirmed")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="repair without asking")] = False,
    data: Data = DATA,
) -> None:
    """Fold every stored event again and compare with what is stored.

    Exit 0: nothing is wrong, or is any more; 1: something is; 2: it could not be checked.
    """
    from services.baton.verify_command import command

    raise typer.Exit(command(database_url(data), workers, as_json=as_json, repair=repair, yes=yes))


@app.command()
def tail(url: Url = STAGE_URL, notifier_url: NotifierUrl = NOTIFIER_URL, data: Data = DATA) -> None:
    """Show transitions and alerts as they happen."""
    from services.baton.tail import follow

    run(follow(url, notifier_url, api_key(data)))


@events.command("export")
def events_export(
    parquet: Annotated[Path, typer.Option("--parquet", help="a new directory for the files")],
    data: Data = DATA,
) -> None:
    """Write all lead events as Parquet, with what a fold of them needs; for Spark, DuckDB and the like."""
    from services.baton import export

    try:
        export.command(parquet, database_url(data))
    except ImportError:
        fail(export.MISSING, 2)
    except FileExistsError as error:
        fail(str(error), 2)


@events.command("send")
def send(
    file: Annotated[Path, typer.Argument(help="JSON array or lines of CloudEvents; - is stdin")],
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Send CloudEvents from a file; exit 1 when one was rejected."""
    from services.baton.send import send_events

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        fail(f"{file}: {error.strerror}", 2)
    try:
        counts, rejected = run(send_events(url, api_key(data), text))
    except ValueError as error:
        fail(f"{file}: {error}", 2)
    print(" ".join(f"{status}={count}" for status, count in sorted(counts.items())) or "no events")
    for result in rejected:
        print(json.dumps(result), file=sys.stderr)
    if rejected:
        raise typer.Exit(1)


@keys.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="whose key it is")],
    scope: Annotated[list[str], typer.Option(help="ingest, read, move or admin; repeat it")],
    source: Annotated[
        list[str] | None, typer.Option(help="ingest for this source only; repeat it")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="requests, like '100/s burst 200', or off")
    ] = None,
    event_rate: Annotated[str | None, typer.Option(help="events, like 1000/s, or off")] = None,
    data: Data = DATA,
) -> None:
    """Create a key and show it, this once."""
    from services.baton import access

    try:
        id, token = run(
            access.create(
                database_url(data), name, scope, source or [], rate=rate, event_rate=event_rate
            )
        )
    except ValueError as error:
        fail(str(error), 2)
    print(f"id   {id}\nkey  {token}\nIt is not shown again.")


@keys.command("list")
def keys_list(data: Data = DATA) -> None:
    """List the keys, without their secrets."""
    from services.baton import access

    for key in run(access.listed(database_url(data))):
        state = "revoked" if key["revoked_at"] else "active"
        bounds = [f"source={','.join(key['sources'])}"] if key["sources"] else []
        bounds += [f"{n.replace('_', '-')}={key[n]}" for n in ("rate", "event_rate") if key[n]]
        line = f"{key['id']}  {state:8} {','.join(key['scopes']):24} {key['name']}"
        print("  ".join([line, *bounds]))


@keys.command("revoke")
def keys_revoke(id: str, data: Data = DATA) -> None:
    """Revoke a key; it stops working within 5 seconds."""
    from services.baton import access

    if not run(access.revoke(database_url(data), id)):
        fail(f"there is no active key {id!r}")
    print(f"revoked {id}")


@playbook.command("validate")
def playbook_validate(
    files: Annotated[list[Path], typer.Argument(help="playbook files")],
    team: Annotated[
        Path | None,
        typer.Option(
            envvar="BATON_TEAM_FILE", help="the roster: whom it does not have is warned of"
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="text, json or sarif")] = "text",
    level: Annotated[str, typer.Option(help="tell from here on: warning or error")] = "warning",
    strict: Annotated[bool, typer.Option("--strict", help="a warning fails too")] = False,
    seen: Annotated[
        str, typer.Option(help="ask the database what events brought lately: 90d")
    ] = "",
    data: Data = DATA,
) -> None:
    """Check playbooks: errors, which are refused, and warnings, each with its place, reason and remedy.

    Exit 0 without errors, 1 with one (with --strict a warning too), 2 when the checks cannot be made.
    """
    from services.baton import validate
    from services.contracts.team import load_team
    from services.contracts.yaml_source import SourceError

    if format not in validate.FORMATS or level not in validate.LEVELS:
        fail(
            f"--format is {', '.join(validate.FORMATS)}; --level is {', '.join(validate.LEVELS)}", 2
        )
    try:
        days = validate.days_in(seen) if seen else 0
        roster = load_team(team) if team is not None else None
        lately, held = run(validate.asked_of(database_url(data), days)) if days else (None, None)
        all_found = [
            f for file in files for f in validate.findings_of(file, held or roster, lately)
        ]
    except (SourceError, OSError, ValueError) as error:
        fail(str(error), 2)
    found = [f for f in all_found if level == "warning" or f.level == "error"]
    failed = any(strict or f.level == "error" for f in found)
    if format == "json":
        print(validate.as_json(files, found))
    elif format == "sarif":
        print(validate.as_sarif(found, Path.cwd()))
    else:
        for line in validate.as_text(found):
            print(line, file=sys.stderr)
        if lately is not None and not lately.types:
            print(
                f"no event came in the last {days} days: nothing is known of them", file=sys.stderr
            )
        if not failed:
            print(f"{', '.join(str(f) for f in files)}: valid")
    if failed:
        raise typer.Exit(1)


@playbook.command("show")
def playbook_show(
    file: Annotated[Path, typer.Argument()] = Path("playbooks/sales.yaml"),
    format: Annotated[str, typer.Option(help="terminal, mermaid or svg")] = "terminal",
) -> None:
    """Draw a playbook's stages and the rules between them."""
    from services.baton.playbooks import draw
    from services.contracts.yaml_source import SourceError

    try:
        draw(file, format)
    except (SourceError, OSError, ValueError) as error:
        fail(str(error), 2)


@playbook.command("test")
def playbook_test(
    files: Annotated[
        list[Path] | None, typer.Argument(help="files of cases, or directories of them")
    ] = None,
    playbook: Annotated[
        Path | None, typer.Option(help="test this playbook instead of the one the file names")
    ] = None,
    fail_under: Annotated[
        float, typer.Option(min=0, max=100, help="percent of stages, rules and clocks to touch")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Run a playbook's tests; exit 1 when one fails or too little is touched, 2 for a bad file."""
    from rich.console import Console

    from services.baton import playbook_tests
    from services.contracts.yaml_source import SourceError

    found = playbook_tests.case_files(files or [Path("playbooks/tests")])
    if not found:
        fail("no files of cases there: write one, as docs/playbook.md shows", 2)
    try:
        runs = [playbook_tests.run_file(file, playbook) for file in found]
    except (SourceError, OSError) as error:
        fail(str(error), 2)
    if as_json:
        print(json.dumps(playbook_tests.as_json(runs), indent=1))
    else:
        playbook_tests.show(runs, Console(highlight=False))
    too_little = any(c.share * 100 < fail_under for c in playbook_tests.coverages(runs).values())
    if too_little or any(o.failures for r in runs for o in r.outcomes):
        raise typer.Exit(1)


@playbook.command("simulate")
def playbook_simulate(
    file: Annotated[Path, typer.Argument(help="the candidate playbook")],
    since: Annotated[
        str, typer.Option(help="only leads that did something since then: 90d, or 2026-09-01")
    ] = "",
    workers: Annotated[int, typer.Option(min=0, help="processes; 0: one a core")] = 0,
    team: Annotated[Path, typer.Option(help="the roster whose hours count")] = Path(
        "playbooks/team.yaml"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the whole result here")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="write the journeys that differ here")
    ] = None,
    data: Data = DATA,
) -> None:
    """Fold real history under another playbook and show what would differ; writes and sends nothing."""
    from services.baton import simulate
    from services.contracts.yaml_source import SourceError

    try:
        simulate.command(file, since, workers, team, json_file, csv_file, database_url(data))
    except (SourceError, OSError, ValueError) as error:
        fail(str(error), 2)


Reason = Annotated[str, typer.Option("--reason", help="shown in the timeline")]


@leads.command("merge")
def leads_merge(
    lead: Annotated[str, typer.Argument(help="id of a lead")],
    other: Annotated[str, typer.Argument(help="id of the other; the older of both survives")],
    reason: Reason,
    data: Data = DATA,
    url: Url = STAGE_URL,
) -> None:
    """Say that two leads are one person."""
    _regroup(url, data, "merge", lead, other, reason)


@leads.command("unmerge")
def leads_unmerge(
    lead: Annotated[str, typer.Argument(help="id of the lead that survived")],
    merged: Annotated[str, typer.Argument(help="id of the lead that was merged into it")],
    reason: Reason,
    data: Data = DATA,
    url: Url = STAGE_URL,
) -> None:
    """Undo a merge: both get back what was theirs, and no event merges them again."""
    _regroup(url, data, "unmerge", lead, merged, reason)


def _regroup(url: str, data: Path, deed: str, lead: str, other: str, reason: str) -> None:
    from services.baton.leads import regroup

    try:
        print(run(regroup(url, api_key(data), deed, lead, other, reason)))
    except ValueError as error:
        fail(str(error))


@leads.command("why")
def leads_why(
    lead: Annotated[str, typer.Argument(help="the lead's id or e-mail address")],
    at: Annotated[
        str | None, typer.Option(help="as Baton knew it at this moment: 2026-09-01T09:30:00Z")
    ] = None,
    data: Data = DATA,
    url: Url = STAGE_URL,
) -> None:
    """Say what would move a lead, and of each rule why it does not."""
    from services.baton.leads import why

    try:
        for line in run(why(url, api_key(data), lead, at)):
            print(line)
    except ValueError as error:
        fail(str(error))


@leads.command("snapshot")
def leads_snapshot(data: Data = DATA) -> None:
    """Publish every lead to the Kafka topic baton.leads again."""
    from services.baton.leads import snapshot_again

    count = run(snapshot_again(database_url(data)))
    if count is None:
        fail("no stage service publishes to Kafka: set BATON_KAFKA_BOOTSTRAP_SERVERS for it")
    print(f"{count} leads are published to baton.leads once more")


@dead_letters.command("list")
def dead_letters_list(notifier_url: NotifierUrl = NOTIFIER_URL, data: Data = DATA) -> None:
    """List what could not be delivered or read."""
    from services.baton.send import dead_letters as fetch

    for line in run(fetch(notifier_url, api_key(data))):
        print(line)


@dead_letters.command("retry")
def dead_letters_retry(
    id: str, notifier_url: NotifierUrl = NOTIFIER_URL, data: Data = DATA
) -> None:
    """Deliver a dead-lettered alert again."""
    from services.baton.send import retry

    try:
        print(run(retry(notifier_url, api_key(data), id)))
    except ValueError as error:
        fail(str(error))


def main() -> None:
    """Run the command line; ``.env`` in the working directory fills in what the environment lacks."""
    import structlog
    from dotenv import load_dotenv

    # Loading code makes no garbage, and looking for it is a sixth of a start.
    gc.set_threshold(200_000, 20, 100)
    load_dotenv(Path(".env"))
    # What a command prints is its answer, for programs too; logs are beside it.
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stderr))
    app()


if __name__ == "__main__":
    main()
