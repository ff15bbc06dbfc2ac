"""The command line: the commands that stand alone, and the groups of the others, one file each.

Commands import what they need when they run, so that `baton --help` is quick.
"""

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
    cli_dead_letters,
    cli_events,
    cli_handoffs,
    cli_kafka,
    cli_keys,
    cli_leads,
    cli_people,
    cli_playbook_checks,
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
playbook = typer.Typer(no_args_is_help=True, help="Playbooks: check, try, publish, roll back.")
playbook.add_typer(cli_playbook_checks.app)
playbook.add_typer(cli_playbooks.app)
for name, group in (
    ("keys", cli_keys.app), ("playbook", playbook), ("events", cli_events.app),
    ("leads", cli_leads.app), ("dead-letters", cli_dead_letters.app),
    ("sources", cli_sources.app), ("connectors", cli_connectors.app),
    ("quarantine", cli_quarantine.app), ("alerts", cli_alerts.app), ("people", cli_people.app),
    ("handoffs", cli_handoffs.app), ("kafka", cli_kafka.app),
    ("subscriptions", cli_subscriptions.app), ("audit", cli_audit.app),
):  # fmt: skip
    app.add_typer(group, name=name)


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
